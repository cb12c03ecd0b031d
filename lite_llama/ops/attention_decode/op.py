"""Attention of one new token a sequence over its paged cache."""

from torch import Tensor

from lite_llama.kernel_lib.checks import check, check_integer, check_rank, check_shape
from lite_llama.ops.attention_decode import reference


def attention_decode(
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    *,
    block_table: Tensor,
    seq_lens: Tensor,
    scale: float | None = None,
    window: int | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """softmax(q kᵀ · scale) v over the seq_lens[i] cached tokens of each sequence.

    q [num_seqs, num_q_heads, head_dim]; k_cache and v_cache
    [num_blocks, block_size, num_kv_heads, head_dim]; block_table int32 [num_seqs, max_blocks];
    seq_lens int32 [num_seqs], the new token included; a length of 0 marks a padding row, whose
    result is 0. scale, window, sinks and head grouping as in `attention_prefill`.
    Returns q's shape and dtype.
    """
    check_rank("q", q, 3)
    check_rank("k_cache", k_cache, 4)
    check_shape("v_cache", v_cache, tuple(k_cache.shape))
    check(
        k_cache.shape[3] == q.shape[2],
        f"k_cache has head_dim {k_cache.shape[3]}, expected {q.shape[2]} as q",
    )
    check(
        q.shape[1] % k_cache.shape[2] == 0,
        f"q has {q.shape[1]} heads, expected a multiple of k_cache's {k_cache.shape[2]}",
    )
    check_integer("block_table", block_table)
    check_rank("block_table", block_table, 2)
    check_shape("seq_lens", seq_lens, (q.shape[0],))
    return reference.attention_decode(
        q,
        k_cache,
        v_cache,
        block_table=block_table,
        seq_lens=seq_lens,
        scale=scale,
        window=window,
        sinks=sinks,
    )
