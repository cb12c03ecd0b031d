"""attention_prefill in plain torch: one sequence after the other, the whole score matrix."""

from collections.abc import Iterator

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
    out: Tensor,
) -> Tensor:
    sequences = split_sequences(q, k, v, cu_seqlens_q, seq_lens, block_table)
    for rows, queries, keys, values in sequences:
        mask = visible_keys(queries, keys, causal, window)
        out[rows] = _attend(queries, keys, values, mask, scale, sinks)
    return out


def split_sequences(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    cu_seqlens_q: Tensor,
    seq_lens: Tensor,
    block_table: Tensor | None,
) -> Iterator[tuple[slice, Tensor, Tensor, Tensor]]:
    """(rows of q, q, k, v) of each sequence, k and v gathered from their blocks."""
    bounds = cu_seqlens_q.tolist()
    kv_start = 0
    for i, kv_len in enumerate(seq_lens.tolist()):
        rows = slice(bounds[i], bounds[i + 1])
        if block_table is None:
            keys, values = (x[kv_start : kv_start + kv_len] for x in (k, v))
            kv_start += kv_len
        else:
            blocks = block_table[i, : -(-kv_len // k.shape[1])]
            keys, values = (x.index_select(0, blocks).flatten(0, 1)[:kv_len] for x in (k, v))
        yield rows, q[rows], keys, values


def visible_keys(q: Tensor, k: Tensor, causal: bool, window: int | None) -> Tensor:
    """Mask [q_len, kv_len]: which keys each query sees; the last query stands at the last key."""
    q_len, kv_len = len(q), len(k)
    query = torch.arange(kv_len - q_len, kv_len, device=q.device)[:, None]
    key = torch.arange(kv_len, device=q.device)[None, :]
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
