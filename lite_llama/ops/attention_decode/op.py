"""Attention of one new token a sequence over its paged cache."""

from typing import Any

import torch
from torch import Tensor

from lite_llama.kernel_lib.checks import (
    check,
    check_device,
    check_float_up_to_32,
    check_integer,
    check_rank,
    check_same,
    check_shape,
    check_unit_stride,
)
from lite_llama.ops.attention_decode import cpu, reference
from lite_llama.ops.attention_decode.launch import Launch


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
    overlap: float = -1.0,
    launch: Launch | None = None,
) -> Tensor:
    """softmax(q kᵀ · scale) v over the seq_lens[i] cached tokens of each sequence.

    q [num_seqs, num_q_heads, head_dim]; k_cache and v_cache
    [num_blocks, block_size, num_kv_heads, head_dim]; block_table int32 [num_seqs, max_blocks];
    seq_lens int32 [num_seqs], the new token included; a length of 0 marks a padding row, whose
    result is 0. scale, window, sinks and head grouping as in `attention_prefill`.
    `overlap` 0 or 1 launches the kernel as a programmatic dependent where the GPU has that, and the
    kernel behind it may start when this one begins (0) or ends (1): lengths, block table and all
    cached keys but each sequence's newest must be older than the kernel before. −1: a plain launch.
    `launch` says how the keys are split and tiled; None: as fits the problem.
    Returns q's shape and dtype.
    """
    _check_heads(q, k_cache, v_cache)
    check_rank("block_table", block_table, 2)
    check_shape("block_table", block_table, (q.shape[0], block_table.shape[1]))
    check_shape("seq_lens", seq_lens, (q.shape[0],))
    for name, tensor in (("block_table", block_table), ("seq_lens", seq_lens)):
        check_integer(name, tensor)
        check_device(name, tensor, "q", q)
        check_unit_stride(name, tensor)
    check(scale is None or scale > 0, lambda: f"scale is {scale}, expected a positive number")
    check(window is None or window > 0, lambda: f"window is {window}, expected at least 1")
    if sinks is not None:
        check_shape("sinks", sinks, (q.shape[1],))
        check_device("sinks", sinks, "q", q)
    if q.numel() == 0 or block_table.numel() == 0:
        return torch.zeros_like(q)
    arguments: dict[str, Any] = {
        "block_table": block_table,
        "seq_lens": seq_lens,
        "scale": q.shape[-1] ** -0.5 if scale is None else scale,
        "window": window,
    }
    if q.is_cuda:
        from lite_llama.ops.attention_decode import kernel

        return kernel.attention_decode(
            q, k_cache, v_cache, sinks=sinks, overlap=overlap, how=launch, **arguments
        )
    if sinks is None:
        return cpu.attention_decode(q, k_cache, v_cache, **arguments)
    return reference.attention_decode(q, k_cache, v_cache, sinks=sinks, **arguments)


def _check_heads(q: Tensor, k_cache: Tensor, v_cache: Tensor) -> None:
    check_rank("q", q, 3)
    check_float_up_to_32("q", q)
    check_rank("k_cache", k_cache, 4)
    check_shape("v_cache", v_cache, tuple(k_cache.shape))
    for name, tensor in (("q", q), ("k_cache", k_cache), ("v_cache", v_cache)):
        check_same(name, tensor, "q", q)
        check_unit_stride(name, tensor)
    check(
        k_cache.shape[3] == q.shape[2],
        lambda: f"k_cache has head_dim {k_cache.shape[3]}, expected {q.shape[2]} as q",
    )
    check(
        k_cache.shape[2] > 0 and q.shape[1] % k_cache.shape[2] == 0,
        lambda: f"q has {q.shape[1]} heads, expected a multiple of k_cache's {k_cache.shape[2]}",
    )
