"""attention_prefill in plain torch: one sequence after the other, the whole score matrix."""

import torch
from torch import Tensor


def attention_prefill(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    cu_seqlens_q: Tensor,
    seq_lens: Tensor,
    block_table: Tensor | None,
    causal: bool,
    scale: float,
    window: int | None,
    sinks: Tensor | None,
) -> Tensor:
    out = torch.empty_like(q)
    bounds = cu_seqlens_q.tolist()
    kv_start = 0
    for i, kv_len in enumerate(seq_lens.tolist()):
        rows = slice(bounds[i], bounds[i + 1])
        if block_table is None:
            keys, values = (x[kv_start : kv_start + kv_len] for x in (k, v))
            kv_start += kv_len
        else:
            keys, values = (_gather(x, block_table[i], kv_len) for x in (k, v))
        mask = _mask(rows.stop - rows.start, kv_len, causal, window, q.device)
        out[rows] = _attend(q[rows], keys, values, mask, scale, sinks)
    return out


def _gather(cache: Tensor, blocks: Tensor, kv_len: int) -> Tensor:
    block_size = cache.shape[1]
    used = blocks[: -(-kv_len // block_size)].long()
    return cache[used].flatten(0, 1)[:kv_len]


def _mask(
    q_len: int, kv_len: int, causal: bool, window: int | None, device: torch.device
) -> Tensor:
    query = torch.arange(kv_len - q_len, kv_len, device=device)[:, None]
    key = torch.arange(kv_len, device=device)[None, :]
    visible = key <= query if causal else torch.ones_like(key <= query)
    return visible if window is None else visible & (key > query - window)


def _attend(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor, scale: float, sinks: Tensor | None
) -> Tensor:
    q_per_kv = q.shape[1] // k.shape[1]
    keys, values = (x.float().repeat_interleave(q_per_kv, dim=1).transpose(0, 1) for x in (k, v))
    scores = q.float().transpose(0, 1) @ keys.transpose(1, 2) * scale
    scores = scores.masked_fill(~mask, float("-inf"))
    if sinks is not None:
        extra = sinks.float()[:, None, None].expand(-1, scores.shape[1], 1)
        scores = torch.cat((scores, extra), dim=-1)
    weights = torch.softmax(scores, dim=-1)[..., : k.shape[0]]
    return (weights @ values).transpose(0, 1).to(q.dtype)
