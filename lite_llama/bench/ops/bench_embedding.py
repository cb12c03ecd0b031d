"""embedding: a read and a write an element of a gathered row."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lite_llama.bench.harness import Case
from lite_llama.ops import embedding


def cases(device: torch.device, dtype: torch.dtype) -> list[Case]:
    problems = [(1, 2, 3), (50, 512, 4096), (64, 128256, 2048), (2048, 128256, 2048)]
    if device.type != "cuda":
        problems = problems[:2]
    return [_case(device, dtype, *problem) for problem in problems]


def _case(device: torch.device, dtype: torch.dtype, count: int, rows: int, columns: int) -> Case:
    table = torch.randn(rows, columns, device=device, dtype=dtype)

    def make_inputs() -> tuple[Tensor]:
        return (torch.randint(0, rows, (count,), device=device),)

    return Case(
        name=f"{count} of {rows}x{columns}",
        dtype=dtype,
        make_inputs=make_inputs,
        contenders={
            "torch": lambda indices: F.embedding(indices, table),
            "lite_llama": lambda indices: embedding(indices, table),
        },
        num_bytes=2 * count * columns * dtype.itemsize,
        copies=True,
        limit=0.0,
    )
