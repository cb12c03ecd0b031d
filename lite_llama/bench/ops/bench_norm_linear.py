"""norm_linear: the heads of Llama-3.2-1B and SmolLM2, at one token."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lite_llama.bench.harness import Case
from lite_llama.ops import norm_linear

_EPS = 1e-5


def cases(device: torch.device, dtype: torch.dtype) -> list[Case]:
    on_gpu = [(128256, 2048), (49152, 576)]
    sizes = on_gpu if device.type == "cuda" else [(64, 64)]
    return [_case(device, dtype, *size) for size in sizes]


def _case(device: torch.device, dtype: torch.dtype, rows: int, columns: int) -> Case:
    def make_inputs() -> tuple[Tensor, ...]:
        weight = torch.randn(rows, columns, device=device, dtype=dtype) * columns**-0.5
        return torch.randn(1, columns, device=device, dtype=dtype), weight[0].clone(), weight

    def by_torch(x: Tensor, norm: Tensor, weight: Tensor) -> Tensor:
        return F.linear(F.rms_norm(x, norm.shape, norm, _EPS), weight).float()

    return Case(
        name=f"{rows}x{columns}",
        dtype=dtype,
        make_inputs=make_inputs,
        contenders={"torch": by_torch, "lite_llama": lambda x, n, w: norm_linear(x, n, w, _EPS)},
        num_bytes=(rows * columns + 2 * columns) * dtype.itemsize + 4 * rows,
    )
