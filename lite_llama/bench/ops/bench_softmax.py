"""softmax: a read and a write an element."""

import torch

from lite_llama.bench.harness import Case, random_inputs
from lite_llama.ops import softmax


def cases(device: torch.device, dtype: torch.dtype) -> list[Case]:
    shapes = [(128, 128), *((4096, 128 * i) for i in (2, 9, 32, 64, 99)), (64, 128256)]
    if device.type != "cuda":
        shapes = [(64, 576)]
    return [_case(device, dtype, rows, n) for rows, n in shapes]


def _case(device: torch.device, dtype: torch.dtype, rows: int, n: int) -> Case:
    return Case(
        name=f"{rows}x{n}",
        dtype=dtype,
        make_inputs=random_inputs(device, dtype, (rows, n)),
        contenders={"torch": lambda x: torch.softmax(x, dim=-1), "lite_llama": softmax},
        num_bytes=2 * rows * n * dtype.itemsize,
        copies=True,
        compile_torch=n == 4096,
    )
