"""layer_norm: a read and a write an element."""

import torch
import torch.nn.functional as F

from lite_llama.bench.harness import Case, random_inputs
from lite_llama.ops import layer_norm

_EPS = 1e-5


def cases(device: torch.device, dtype: torch.dtype) -> list[Case]:
    shapes = [(128, 128), *((4096, 512 * i) for i in (2, 5, 8, 16, 31))]
    if device.type != "cuda":
        shapes = [(64, 576)]
    return [_case(device, dtype, rows, n) for rows, n in shapes]


def _case(device: torch.device, dtype: torch.dtype, rows: int, n: int) -> Case:
    return Case(
        name=f"{rows}x{n}",
        dtype=dtype,
        make_inputs=random_inputs(device, dtype, (rows, n), (n,), (n,)),
        contenders={
            "torch": lambda x, weight, bias: F.layer_norm(x, weight.shape, weight, bias, _EPS),
            "lite_llama": lambda x, weight, bias: layer_norm(x, weight, bias, _EPS),
        },
        num_bytes=2 * rows * n * dtype.itemsize,
        copies=True,
        compile_torch=n == 4096,
    )
