"""linear_add: o and down of Llama-3.2-1B and an 8B's down, at one token."""

import torch
from torch import Tensor

from lite_llama.bench.harness import Case
from lite_llama.ops import linear_add


def cases(device: torch.device, dtype: torch.dtype) -> list[Case]:
    on_gpu = [(2048, 2048), (2048, 8192), (4096, 14336)]
    sizes = on_gpu if device.type == "cuda" else [(64, 64)]
    return [_case(device, dtype, *size) for size in sizes]


def _case(device: torch.device, dtype: torch.dtype, rows: int, columns: int) -> Case:
    def make_inputs() -> tuple[Tensor, ...]:
        weight = torch.randn(rows, columns, device=device, dtype=dtype) * columns**-0.5
        x, residual = (torch.randn(1, n, device=device, dtype=dtype) for n in (columns, rows))
        return x, weight, residual

    return Case(
        name=f"{rows}x{columns}",
        dtype=dtype,
        make_inputs=make_inputs,
        contenders={"torch": lambda x, w, r: torch.addmm(r, x, w.T), "lite_llama": linear_add},
        num_bytes=(rows * columns + columns + 2 * rows) * dtype.itemsize,
    )
