"""argmax: one read an element."""

from collections.abc import Callable

import torch
from torch import Tensor

from lite_llama.bench.harness import Case
from lite_llama.ops import argmax


def cases(device: torch.device, dtype: torch.dtype) -> list[Case]:
    on_gpu = device.type == "cuda"
    shapes = [(1, 4096), (8, 128256), (256, 128256)] if on_gpu else [(1, 4096), (8, 4096)]
    return [
        Case(
            name=f"{rows}x{columns}",
            dtype=dtype,
            make_inputs=_inputs(device, dtype, rows, columns),
            # Values and indices of both: torch.compile drops what is not returned.
            contenders={"torch": lambda x: tuple(x.max(dim=-1)), "lite_llama": argmax},
            num_bytes=rows * columns * dtype.itemsize,
            compile_torch=rows <= 8,
        )
        for rows, columns in shapes
    ]


def _inputs(
    device: torch.device, dtype: torch.dtype, rows: int, columns: int
) -> Callable[[], tuple[Tensor]]:
    def make_inputs() -> tuple[Tensor]:
        x = torch.randn(rows, columns, device=device, dtype=dtype)
        # One largest value a row: torch orders ties as it likes.
        x.scatter_(1, torch.randint(columns, (rows, 1), device=device), 100.0)
        return (x,)

    return make_inputs
