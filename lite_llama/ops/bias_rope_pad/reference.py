"""bias_rope_pad and unpad in plain torch, float32 inside."""

from itertools import pairwise

import torch
from torch import Tensor


def bias_rope_pad(
    qkv: Tensor,
    bias: Tensor,
    cos_sin: Tensor,
    cu_seqlens: Tensor,
    max_seq_len: int,
    num_q_heads: int,
) -> tuple[Tensor, Tensor, Tensor]:
    head_dim = cos_sin.shape[1]
    num_heads = qkv.shape[1] // head_dim
    batch = len(cu_seqlens) - 1
    out = torch.zeros(batch, num_heads, max_seq_len, head_dim, dtype=qkv.dtype, device=qkv.device)
    num_kv_heads = (num_heads - num_q_heads) // 2
    heads = (qkv.float() + bias.float()).view(-1, num_heads, head_dim)
    offsets = cu_seqlens.tolist()
    for i, (begin, end) in enumerate(pairwise(offsets)):
        rows = heads[begin:end]
        cos, sin = cos_sin[: end - begin, None].chunk(2, dim=-1)
        a, b = rows.chunk(2, dim=-1)
        turned = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
        turned[:, num_heads - num_kv_heads :] = rows[:, num_heads - num_kv_heads :]
        out[i, :, : end - begin] = turned.transpose(0, 1).to(out.dtype)
    q, k, v = torch.split(out, [num_q_heads, num_kv_heads, num_kv_heads], dim=1)
    return q.contiguous(), k.contiguous(), v.contiguous()


def unpad(x: Tensor, cu_seqlens: Tensor, num_tokens: int) -> Tensor:
    offsets = cu_seqlens.tolist()
    rows = [
        x[i, :, : end - begin].transpose(0, 1).flatten(1)
        for i, (begin, end) in enumerate(pairwise(offsets))
    ]
    out = torch.cat(rows)
    assert len(out) == num_tokens
    return out
