"""topk: one read an element."""

import torch

from lite_llama.bench.harness import Case, random_inputs
from lite_llama.ops import topk


def cases(device: torch.device, dtype: torch.dtype) -> list[Case]:
    problems = [(1, 30000, 5), (8, 128256, 1), (8, 128256, 5), (8, 128256, 50), (8, 128256, 256)]
    if device.type != "cuda":
        problems = [(1, 3000, 5)]
    return [_case(device, dtype, *problem) for problem in problems]


def _case(device: torch.device, dtype: torch.dtype, rows: int, columns: int, k: int) -> Case:
    return Case(
        name=f"{rows}x{columns} k{k}",
        dtype=dtype,
        make_inputs=random_inputs(device, dtype, (rows, columns)),
        # Torch orders ties as it likes: values are compared.
        contenders={"torch": lambda x: torch.topk(x, k)[0], "lite_llama": lambda x: topk(x, k)[0]},
        num_bytes=rows * columns * dtype.itemsize,
    )
