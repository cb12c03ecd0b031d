"""norm_qkv in plain torch."""

import torch
import torch.nn.functional as F
from torch import Tensor


def norm_qkv(
    x: Tensor,
    norm: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    *,
    cos_sin: Tensor,
    positions: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
) -> Tensor:
    num_kv_heads, head_dim = k_cache.shape[2:]
    normed = F.rms_norm(x.float(), norm.shape, norm.float(), eps).to(x.dtype)
    product = F.linear(normed.float(), weight.float(), None if bias is None else bias.float())
    heads = product.to(x.dtype).view(-1, head_dim)
    rotated = len(heads) - num_kv_heads
    cos, sin = cos_sin[positions].chunk(2, dim=-1)
    a, b = heads[:rotated].float().chunk(2, dim=-1)
    heads[:rotated] = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(x.dtype)
    slot = int(slot_mapping)
    if slot >= 0:
        k_cache.view(-1, num_kv_heads, head_dim)[slot] = heads[rotated - num_kv_heads : rotated]
        v_cache.view(-1, num_kv_heads, head_dim)[slot] = heads[rotated:]
    return heads[: rotated - num_kv_heads].unsqueeze(0)
