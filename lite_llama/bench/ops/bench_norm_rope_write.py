"""norm_rope_write: the heads of Qwen3-0.6B and Qwen3-8B, at one token."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lite_llama.bench.harness import Case
from lite_llama.ops import norm_rope_write

_EPS = 1e-6


def cases(device: torch.device, dtype: torch.dtype) -> list[Case]:
    on_gpu = [(16, 8, 128), (32, 8, 128)]
    sizes = on_gpu if device.type == "cuda" else [(4, 2, 16)]
    return [_case(device, dtype, *size) for size in sizes]


def _case(device: torch.device, dtype: torch.dtype, num_q: int, num_kv: int, dim: int) -> Case:
    columns = (num_q + 2 * num_kv) * dim
    cache = torch.zeros(2, 4, 16, num_kv, dim, device=device, dtype=dtype)
    angles = torch.randn(64, dim // 2, device=device)
    cos_sin = torch.cat((angles.cos(), angles.sin()), dim=-1)
    where = torch.zeros(1, dtype=torch.int64, device=device)

    def make_inputs() -> tuple[Tensor, ...]:
        norms = (torch.randn(dim, device=device, dtype=dtype) for _ in range(2))
        return torch.randn(1, columns, device=device), *norms

    def by_torch(qkv: Tensor, q_norm: Tensor, k_norm: Tensor) -> Tensor:
        heads = qkv.to(dtype).view(1, -1, dim)
        q = F.rms_norm(heads[:, :num_q], (dim,), q_norm, _EPS).float()
        k = F.rms_norm(heads[:, num_q : num_q + num_kv], (dim,), k_norm, _EPS).float()
        cos, sin = cos_sin[where].unsqueeze(1).chunk(2, dim=-1)
        for x in (q, k):
            a, b = x.chunk(2, dim=-1)
            x.copy_(torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1))
        cache[0].view(-1, num_kv, dim)[where] = k.to(dtype)
        cache[1].view(-1, num_kv, dim)[where] = heads[:, num_q + num_kv :]
        return q.to(dtype)

    def ours(qkv: Tensor, q_norm: Tensor, k_norm: Tensor) -> Tensor:
        return norm_rope_write(
            qkv, q_norm, k_norm, _EPS, cos_sin=cos_sin, positions=where,
            k_cache=cache[0], v_cache=cache[1], slot_mapping=where,
        )  # fmt: skip

    return Case(
        name=f"{num_q}/{num_kv}x{dim}",
        dtype=dtype,
        make_inputs=make_inputs,
        contenders={"torch": by_torch, "lite_llama": ours},
        num_bytes=columns * (4 + dtype.itemsize),
    )
