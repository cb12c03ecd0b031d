"""Ragged attention problems with a float64 answer, dense or paged, unused memory full of NaN."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import torch
import torch.nn.functional as F
from torch import Tensor

from tests.ops.compare import poison, random


@dataclass(frozen=True)
class Heads:
    """Query heads, KV heads and their dimension."""

    num_q: int
    num_kv: int
    dim: int


@dataclass(frozen=True)
class Ragged:
    """q [num_tokens, ...]; k and v per sequence; as a paged cache where `block_table` is set."""

    q: Tensor
    keys: list[Tensor]
    values: list[Tensor]
    cu_seqlens_q: Tensor
    seq_lens: Tensor
    k: Tensor
    v: Tensor
    block_table: Tensor | None


def ragged(
    q_lens: Sequence[int],
    kv_lens: Sequence[int],
    heads: Heads,
    dtype: torch.dtype,
    device: torch.device,
    block_size: int = 0,
) -> Ragged:
    """Random problem; block_size 0 means dense keys and values."""

    def new(num_rows: int, num_heads: int) -> Tensor:
        return random(num_rows, num_heads, heads.dim, dtype=dtype, device=device)

    keys, values = ([new(n, heads.num_kv) for n in kv_lens] for _ in range(2))
    block_table = None
    if block_size:
        block_table = _scattered_blocks(kv_lens, block_size).to(device)
        k, v = (_paged(x, block_table, block_size) for x in (keys, values))
    else:
        k, v = torch.cat(keys), torch.cat(values)
    integers = {"dtype": torch.int32, "device": device}
    return Ragged(
        q=new(sum(q_lens), heads.num_q),
        keys=keys,
        values=values,
        cu_seqlens_q=torch.tensor([0, *accumulate(q_lens)], **integers),
        seq_lens=torch.tensor(list(kv_lens), **integers),
        k=k,
        v=v,
        block_table=block_table,
    )


def _scattered_blocks(kv_lens: Sequence[int], block_size: int) -> Tensor:
    """Block numbers in random order; unused places of the table point far outside the cache."""
    counts = [-(-n // block_size) for n in kv_lens]
    numbers = torch.randperm(sum(counts)).split(counts)
    table = torch.full((len(kv_lens), max(counts) + 1), 2**30, dtype=torch.int32)
    for row, blocks in zip(table, numbers, strict=True):
        row[: len(blocks)] = blocks
    return table


def _paged(rows: list[Tensor], block_table: Tensor, block_size: int) -> Tensor:
    num_blocks = sum(-(-len(x) // block_size) for x in rows)
    cache = poison(rows[0].new_empty(num_blocks, block_size, *rows[0].shape[1:]))
    for x, blocks in zip(rows, block_table, strict=True):
        at = torch.arange(len(x), device=x.device)
        cache[blocks[at // block_size].long(), at % block_size] = x
    return cache


def answer(
    x: Ragged,
    *,
    causal: bool = True,
    window: int | None = None,
    sinks: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    """float64 softmax(q kᵀ · scale) v; the last query stands at the last key."""
    bounds = x.cu_seqlens_q.tolist()
    out = torch.zeros(x.q.shape, dtype=torch.float64, device=x.q.device)
    for i, (keys, values) in enumerate(zip(x.keys, x.values, strict=True)):
        q = x.q[bounds[i] : bounds[i + 1]].double().transpose(0, 1)
        if not keys.shape[0] or not q.shape[1]:
            continue
        group = q.shape[0] // keys.shape[1]
        k, v = (t.double().repeat_interleave(group, 1).transpose(0, 1) for t in (keys, values))
        scores = q @ k.transpose(1, 2) * (scale or 1 / math.sqrt(q.shape[2]))
        scores.masked_fill_(
            ~visible(q.shape[1], k.shape[1], causal=causal, window=window, device=q.device),
            -math.inf,
        )
        top = scores.amax(-1, keepdim=True)
        weights = (scores - top).exp()
        total = weights.sum(-1, keepdim=True)
        if sinks is not None:
            total = total + (sinks.double()[:, None, None] - top).exp()
        out[bounds[i] : bounds[i + 1]] = (weights / total @ v).transpose(0, 1)
    return out


def torch_attention(x: Ragged, *, causal: bool = True, window: int | None = None) -> Tensor:
    """torch's own attention in the problem's dtype, sequence after sequence."""
    bounds = x.cu_seqlens_q.tolist()
    out = torch.zeros_like(x.q)
    for i, (keys, values) in enumerate(zip(x.keys, x.values, strict=True)):
        q = x.q[bounds[i] : bounds[i + 1]].transpose(0, 1)
        if not keys.shape[0] or not q.shape[1]:
            continue
        mask = visible(q.shape[1], keys.shape[0], causal=causal, window=window, device=q.device)
        k, v = keys.transpose(0, 1), values.transpose(0, 1)
        got = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, enable_gqa=True)
        out[bounds[i] : bounds[i + 1]] = got.transpose(0, 1)
    return out


def visible(
    q_len: int, kv_len: int, *, causal: bool, window: int | None, device: torch.device
) -> Tensor:
    """[q_len, kv_len]: which keys a query sees."""
    query = torch.arange(kv_len - q_len, kv_len, device=device)[:, None]
    key = torch.arange(kv_len, device=device)[None, :]
    seen = key <= query if causal else torch.ones_like(key <= query)
    return seen if window is None else seen & (key > query - window)
