"""norm_rope_write in plain torch."""

import torch
import torch.nn.functional as F
from torch import Tensor


def norm_rope_write(
    qkv: Tensor,
    q_norm: Tensor,
    k_norm: Tensor,
    eps: float,
    *,
    cos_sin: Tensor,
    positions: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
) -> Tensor:
    num_kv_heads, head_dim = k_cache.shape[2:]
    heads = qkv.view(len(qkv), -1, head_dim)
    sizes = [heads.shape[1] - 2 * num_kv_heads, num_kv_heads, num_kv_heads]
    q, k, v = torch.split(heads, sizes, dim=1)
    cos, sin = cos_sin[positions].unsqueeze(1).chunk(2, dim=-1)

    def turned(x: Tensor, norm: Tensor) -> Tensor:
        x = F.rms_norm(x.float(), norm.shape, norm.float(), eps).to(norm.dtype).float()
        a, b = x.chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(norm.dtype)

    kept = slot_mapping >= 0
    for cache, new in ((k_cache, turned(k, k_norm)), (v_cache, v.to(v_cache.dtype))):
        cache.view(-1, num_kv_heads, head_dim)[slot_mapping[kept]] = new[kept]
    return turned(q, q_norm)
