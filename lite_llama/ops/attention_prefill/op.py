"""Attention of many new tokens a sequence, over dense or paged keys and values."""

from torch import Tensor

from lite_llama.kernel_lib.checks import check, check_integer, check_rank, check_shape
from lite_llama.ops.attention_prefill import reference


def attention_prefill(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    cu_seqlens_q: Tensor,
    seq_lens: Tensor,
    max_q_len: int,  # noqa: ARG001 - the kernel's grid needs it
    block_table: Tensor | None = None,
    causal: bool = True,
    scale: float | None = None,
    window: int | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """softmax(q kᵀ · scale + mask) v for every sequence of a ragged batch, without padding.

    q [num_tokens, num_q_heads, head_dim]: sequence i owns rows cu_seqlens_q[i]:cu_seqlens_q[i+1].
    Without `block_table`: k and v [num_kv_tokens, num_kv_heads, head_dim], sequence after
    sequence, seq_lens[i] tokens each. With `block_table` int32 [num_seqs, max_blocks]: k and v
    are the paged caches [num_blocks, block_size, num_kv_heads, head_dim].
    seq_lens int32 [num_seqs] counts keys, the new tokens included: query j of sequence i stands
    at position seq_lens[i] − q_len + j, so a cached prefix needs nothing else.
    max_q_len: the longest q_len (host side). scale defaults to 1/sqrt(head_dim).
    window: a query sees the last `window` keys up to itself. sinks [num_q_heads]: a logit a head
    that joins the softmax's denominator only (gpt-oss). num_q_heads is a multiple of num_kv_heads:
    query head h reads key head h // (num_q_heads / num_kv_heads). Returns q's shape and dtype.
    """
    check_rank("q", q, 3)
    check_rank("k", k, 3 if block_table is None else 4)
    check_shape("v", v, tuple(k.shape))
    check(
        k.shape[-1] == q.shape[-1],
        f"k has head_dim {k.shape[-1]}, expected {q.shape[-1]} as q",
    )
    check(
        q.shape[1] % k.shape[-2] == 0,
        f"q has {q.shape[1]} heads, expected a multiple of k's {k.shape[-2]}",
    )
    check_integer("cu_seqlens_q", cu_seqlens_q)
    check_integer("seq_lens", seq_lens)
    check_shape("cu_seqlens_q", cu_seqlens_q, (seq_lens.shape[0] + 1,))
    check(
        not (window is not None and not causal),
        f"window is {window}, expected None when causal is False",
    )
    return reference.attention_prefill(
        q,
        k,
        v,
        cu_seqlens_q=cu_seqlens_q,
        seq_lens=seq_lens,
        block_table=block_table,
        causal=causal,
        scale=scale,
        window=window,
        sinks=sinks,
    )
