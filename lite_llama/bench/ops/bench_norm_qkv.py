"""norm_qkv: the projections of Llama-3.2-1B and an 8B, rope and cache write, at one token.

The contender "torch" does norm and product only: what follows would cost it more.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from lite_llama.bench.harness import Case
from lite_llama.ops import norm_qkv

_EPS = 1e-5


def cases(device: torch.device, dtype: torch.dtype) -> list[Case]:
    on_gpu = [(32, 8, 64, 2048), (32, 8, 128, 4096)]
    sizes = on_gpu if device.type == "cuda" else [(4, 2, 16, 64)]
    return [_case(device, dtype, *size) for size in sizes]


def _case(
    device: torch.device, dtype: torch.dtype, num_q: int, num_kv: int, dim: int, hidden: int
) -> Case:
    rows = (num_q + 2 * num_kv) * dim
    cache = torch.zeros(2, 4, 16, num_kv, dim, device=device, dtype=dtype)
    angles = torch.randn(64, dim // 2, device=device)
    cos_sin = torch.cat((angles.cos(), angles.sin()), dim=-1)
    # Position 0 rotates by nothing where its angles are 0, so that queries can be compared.
    cos_sin[0, : dim // 2], cos_sin[0, dim // 2 :] = 1.0, 0.0
    where = torch.zeros(1, dtype=torch.int64, device=device)

    def make_inputs() -> tuple[Tensor, ...]:
        weight = torch.randn(rows, hidden, device=device, dtype=dtype) * hidden**-0.5
        x, norm = (torch.randn(n, device=device, dtype=dtype) for n in (hidden, hidden))
        return x[None], norm, weight

    def by_torch(x: Tensor, norm: Tensor, weight: Tensor) -> Tensor:
        y = F.linear(F.rms_norm(x, norm.shape, norm, _EPS), weight)
        return y[:, : num_q * dim].view(1, num_q, dim)

    def ours(x: Tensor, norm: Tensor, weight: Tensor) -> Tensor:
        return norm_qkv(
            x, norm, weight, None, _EPS, cos_sin=cos_sin, positions=where,
            k_cache=cache[0], v_cache=cache[1], slot_mapping=where,
        )  # fmt: skip

    return Case(
        name=f"{num_q}/{num_kv}x{dim} of {hidden}",
        dtype=dtype,
        make_inputs=make_inputs,
        contenders={"torch": by_torch, "lite_llama": ours},
        num_bytes=(rows * hidden + 2 * hidden + rows) * dtype.itemsize,
    )
