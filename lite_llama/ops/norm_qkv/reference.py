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
    num_tokens, (num_kv_heads, head_dim) = len(x), k_cache.shape[2:]
    normed = F.rms_norm(x.float(), norm.shape, norm.float(), eps).to(x.dtype)
    product = F.linear(normed.float(), weight.float(), None if bias is None else bias.float())
    heads = product.to(x.dtype).view(num_tokens, -1, head_dim)
    turned = heads[:, :-num_kv_heads]
    cos, sin = cos_sin[positions].unsqueeze(1).chunk(2, dim=-1)
    a, b = turned.float().chunk(2, dim=-1)
    turned.copy_(torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1))
    kept = slot_mapping >= 0
    for cache, new in ((k_cache, turned[:, -num_kv_heads:]), (v_cache, heads[:, -num_kv_heads:])):
        cache.view(-1, num_kv_heads, head_dim)[slot_mapping[kept]] = new[kept]
    return turned[:, :-num_kv_heads].contiguous()
