"""Attention of many new tokens a sequence, over dense or paged keys and values."""

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
from lite_llama.ops.attention_prefill import cpu, reference


def attention_prefill(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    cu_seqlens_q: Tensor,
    seq_lens: Tensor,
    max_q_len: int,
    block_table: Tensor | None = None,
    causal: bool = True,
    scale: float | None = None,
    window: int | None = None,
    sinks: Tensor | None = None,
    out: Tensor | None = None,
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
    query head h reads key head h // (num_q_heads / num_kv_heads). Returns q's shape and dtype:
    `out`, if given, or a new tensor. Rows of no sequence are not written.
    """
    _check_heads(q, k, v, paged=block_table is not None)
    _check_lengths(q, cu_seqlens_q, seq_lens, block_table)
    _check_mask(q, causal, scale, window, sinks)
    if out is None:
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
    check_shape("out", out, tuple(q.shape))
    check_same("out", out, "q", q)
    check(out.is_contiguous(), lambda: f"out has strides {out.stride()}, expected contiguous")
    if q.numel() == 0 or seq_lens.numel() == 0:
        return out
    check(
        max_q_len > 0,
        lambda: f"max_q_len is {max_q_len}, expected the longest sequence's query count",
    )
    arguments: dict[str, Any] = {
        "cu_seqlens_q": cu_seqlens_q,
        "seq_lens": seq_lens,
        "block_table": block_table,
        "causal": causal,
        "scale": q.shape[-1] ** -0.5 if scale is None else scale,
        "window": window,
        "out": out,
    }
    if q.is_cuda:
        from lite_llama.ops.attention_prefill import kernel

        return kernel.attention_prefill(q, k, v, max_q_len=max_q_len, sinks=sinks, **arguments)
    if sinks is None:
        return cpu.attention_prefill(q, k, v, **arguments)
    return reference.attention_prefill(q, k, v, sinks=sinks, **arguments)


def _check_heads(q: Tensor, k: Tensor, v: Tensor, *, paged: bool) -> None:
    check_rank("q", q, 3)
    check_float_up_to_32("q", q)
    check_rank("k", k, 4 if paged else 3)
    check_shape("v", v, tuple(k.shape))
    for name, tensor in (("q", q), ("k", k), ("v", v)):
        check_same(name, tensor, "q", q)
        check_unit_stride(name, tensor)
    check(
        k.shape[-1] == q.shape[-1],
        lambda: f"k has head_dim {k.shape[-1]}, expected {q.shape[-1]} as q",
    )
    check(
        k.shape[-2] > 0 and q.shape[1] % k.shape[-2] == 0,
        lambda: f"q has {q.shape[1]} heads, expected a multiple of k's {k.shape[-2]}",
    )


def _check_lengths(
    q: Tensor, cu_seqlens_q: Tensor, seq_lens: Tensor, block_table: Tensor | None
) -> None:
    check_rank("seq_lens", seq_lens, 1)
    check_shape("cu_seqlens_q", cu_seqlens_q, (seq_lens.shape[0] + 1,))
    integers = {"cu_seqlens_q": cu_seqlens_q, "seq_lens": seq_lens}
    if block_table is not None:
        check_rank("block_table", block_table, 2)
        check_shape("block_table", block_table, (seq_lens.shape[0], block_table.shape[1]))
        integers["block_table"] = block_table
    for name, tensor in integers.items():
        check_integer(name, tensor)
        check_device(name, tensor, "q", q)
        check_unit_stride(name, tensor)


def _check_mask(
    q: Tensor, causal: bool, scale: float | None, window: int | None, sinks: Tensor | None
) -> None:
    check(scale is None or scale > 0, lambda: f"scale is {scale}, expected a positive number")
    check(window is None or window > 0, lambda: f"window is {window}, expected at least 1")
    check(
        causal or window is None,
        lambda: f"window is {window}, expected None when causal is False",
    )
    if sinks is not None:
        check_shape("sinks", sinks, (q.shape[1],))
        check_device("sinks", sinks, "q", q)
