"""norm_gate_up: the gated projections of Llama-3.2-1B and an 8B, at one token."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lite_llama.bench.harness import Case
from lite_llama.ops import norm_gate_up

_EPS = 1e-5


def cases(device: torch.device, dtype: torch.dtype) -> list[Case]:
    on_gpu = [(8192, 2048), (14336, 4096)]
    sizes = on_gpu if device.type == "cuda" else [(32, 64)]
    return [_case(device, dtype, *size) for size in sizes]


def _case(device: torch.device, dtype: torch.dtype, inter: int, hidden: int) -> Case:
    def make_inputs() -> tuple[Tensor, ...]:
        weight = torch.randn(2 * inter, hidden, device=device, dtype=dtype) * hidden**-0.5
        x, norm = (torch.randn(n, device=device, dtype=dtype) for n in (hidden, hidden))
        return x[None], norm, weight

    def by_torch(x: Tensor, norm: Tensor, weight: Tensor) -> Tensor:
        gate, up = F.linear(F.rms_norm(x, norm.shape, norm, _EPS), weight).chunk(2, dim=-1)
        return F.silu(gate) * up

    return Case(
        name=f"{inter}x{hidden}",
        dtype=dtype,
        make_inputs=make_inputs,
        contenders={"torch": by_torch, "lite_llama": lambda x, n, w: norm_gate_up(x, n, w, _EPS)},
        num_bytes=(2 * inter * hidden + 2 * hidden + inter) * dtype.itemsize,
    )
