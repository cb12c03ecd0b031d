"""attention_decode in plain torch: query heads of one KV head are rows of one small matrix."""

import torch
from torch import Tensor


def attention_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    *,
    block_table: Tensor,
    seq_lens: Tensor,
    scale: float,
    window: int | None,
    sinks: Tensor | None,
) -> Tensor:
    out = torch.empty_like(q)
    block_size, num_kv_heads = k_cache.shape[1:3]
    for i, kv_len in enumerate(seq_lens.tolist()):
        blocks = block_table[i, : -(-kv_len // block_size)]
        first = 0 if window is None else max(0, kv_len - window)
        keys, values = (
            cache.index_select(0, blocks).flatten(0, 1)[first:kv_len].float()
            for cache in (k_cache, v_cache)
        )
        heads = q[i].float().view(num_kv_heads, -1, q.shape[-1])
        scores = heads @ keys.permute(1, 2, 0) * scale
        if sinks is not None:
            extra = sinks.float().view(num_kv_heads, -1, 1)
            scores = torch.cat((scores, extra), dim=-1)
        weights = torch.softmax(scores, dim=-1)[..., : kv_len - first]
        out[i] = (weights @ values.transpose(0, 1)).view(q.shape[1:]).to(q.dtype)
    return out
