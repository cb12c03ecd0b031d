"""rope: a read and a write an element of q and k; the table is read once a token."""

import torch
from torch import Tensor

from lite_llama.bench.harness import Case
from lite_llama.ops import rope


def cases(device: torch.device, dtype: torch.dtype) -> list[Case]:
    problems = [
        (2, 1, 1, 4),
        (512, 4, 4, 4096),
        (1, 32, 8, 64),
        (64, 32, 8, 128),
        (4096, 32, 8, 128),
    ]
    if device.type != "cuda":
        problems = [(2, 1, 1, 4), (16, 9, 3, 64)]
    return [_case(device, dtype, *problem) for problem in problems]


def _case(
    device: torch.device,
    dtype: torch.dtype,
    tokens: int,
    q_heads: int,
    kv_heads: int,
    head_dim: int,
) -> Case:
    angles = torch.rand(tokens + 512, head_dim // 2, device=device) * 6
    cos_sin = torch.cat((angles.cos(), angles.sin()), dim=-1)
    positions = torch.arange(tokens, device=device) + 512

    def make_inputs() -> tuple[Tensor, Tensor]:
        q = torch.randn(tokens, q_heads, head_dim, device=device, dtype=dtype)
        return q, torch.randn(tokens, kv_heads, head_dim, device=device, dtype=dtype)

    def plain(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        # As transformers writes it, with a cached table.
        cos, sin = cos_sin[positions].to(dtype)[:, None].chunk(2, dim=-1)
        cos, sin = cos.repeat(1, 1, 2), sin.repeat(1, 1, 2)
        return q * cos + _rotate_half(q) * sin, k * cos + _rotate_half(k) * sin

    def ours(q: Tensor, k: Tensor) -> tuple[Tensor, Tensor]:
        rope(q, k, cos_sin, positions)
        return q, k

    return Case(
        name=f"{tokens} tokens {q_heads}/{kv_heads}x{head_dim}",
        dtype=dtype,
        make_inputs=make_inputs,
        contenders={"torch": plain, "lite_llama": ours},
        num_bytes=2 * tokens * (q_heads + kv_heads) * head_dim * dtype.itemsize
        + tokens * head_dim * cos_sin.itemsize,
        copies=True,
        compile_torch=tokens == 512,
    )


def _rotate_half(x: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return torch.cat((-b, a), dim=-1)
