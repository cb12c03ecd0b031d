"""Flash attention over a ragged batch (Dao 2023, https://arxiv.org/abs/2307.08691), in Triton.

One program owns BLOCK_M queries of one head and walks the keys they may see. Key blocks that
every query of the tile sees in full skip all masking; only the window's edge, the diagonal and
the last, partly filled block pay for it. Both forms run the same arithmetic, so a row's result
does not depend on where its tile begins.
"""

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from lite_llama.kernel_lib.gpu import gpu_spec
from lite_llama.ops.attention_prefill import hopper
from lite_llama.ops.attention_prefill.launch import (
    Launch,
    Problem,
    choose_launch,
    runs_on_hopper,
)

LOG2_E = tl.constexpr(1.4426950408889634)
# Stands in for −inf so that a row that sees nothing yet gives no NaN. A power of two: its product
# with any scale is exact, so exp2(MASKED·scale − max) is exactly 1 in such a row, never inf.
MASKED = tl.constexpr(-(2.0**100))


@triton.jit
def _load_rows(
    source,
    rows,
    first_row,
    num_rows,
    kv_head,
    row_stride,
    head_stride,
    HEAD_DIM: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    USE_TMA: tl.constexpr,
):
    """BLOCK_N rows of K or V: `source` is a descriptor (TMA) or a pointer; rows past the end: 0."""
    if USE_TMA:
        tile = source.load([first_row, kv_head, 0]).reshape(BLOCK_N, BLOCK_D)
    else:
        dims = tl.arange(0, BLOCK_D)
        inside = (tl.arange(0, BLOCK_N) < num_rows)[:, None] & (dims < HEAD_DIM)[None, :]
        offsets = rows[:, None] * row_stride + kv_head * head_stride + dims[None, :]
        tile = tl.load(source + offsets, mask=inside, other=0.0)
    return tile


@triton.jit
def _attend(
    state,
    q,
    k_source,
    v_source,
    table_row_ptr,
    kv_row_start,
    kv_head,
    begin,
    end,
    first_position,
    kv_len,
    qk_scale,
    window,
    k_row_stride,
    k_head_stride,
    v_row_stride,
    v_head_stride,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    MASK: tl.constexpr,
    CAUSAL: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    USE_TMA: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Fold the keys begin:end into state = (acc, row maximum, row sum)."""
    acc, row_max, row_sum = state
    for start in range(begin, end, BLOCK_N):
        start = tl.multiple_of(start, BLOCK_N)
        keys = start + tl.arange(0, BLOCK_N)
        first_row = kv_row_start + start
        rows = first_row.to(tl.int64) + tl.arange(0, BLOCK_N)
        if BLOCK_SIZE > 0:
            if USE_TMA:
                block = tl.load(table_row_ptr + start // BLOCK_SIZE)
                first_row = block * BLOCK_SIZE + start % BLOCK_SIZE
            else:
                blocks = tl.load(table_row_ptr + keys // BLOCK_SIZE, mask=keys < kv_len, other=0)
                rows = blocks.to(tl.int64) * BLOCK_SIZE + keys % BLOCK_SIZE
        k = _load_rows(
            k_source, rows, first_row, kv_len - start, kv_head, k_row_stride, k_head_stride,
            HEAD_DIM, BLOCK_N, BLOCK_D, USE_TMA,
        )  # fmt: skip
        scores = tl.dot(q, k.T, input_precision=PRECISION)
        if MASK:
            visible = (keys < kv_len)[None, :]
            if CAUSAL:
                positions = first_position + tl.arange(0, BLOCK_M)
                visible = visible & (keys[None, :] <= positions[:, None])
                if HAS_WINDOW:
                    visible = visible & (keys[None, :] > positions[:, None] - window)
            scores = tl.where(visible, scores, MASKED)
        new_max = tl.maximum(row_max, tl.max(scores, 1) * qk_scale)
        weights = tl.exp2(scores * qk_scale - new_max[:, None])
        rescale = tl.exp2(row_max - new_max)
        row_sum = row_sum * rescale + tl.sum(weights, 1)
        acc = acc * rescale[:, None]
        v = _load_rows(
            v_source, rows, first_row, kv_len - start, kv_head, v_row_stride, v_head_stride,
            HEAD_DIM, BLOCK_N, BLOCK_D, USE_TMA,
        )  # fmt: skip
        if MASK and USE_TMA:
            # The tile may reach into a neighbour or an unwritten slot, and 0 · NaN is NaN.
            v = tl.where((keys < kv_len)[:, None], v, 0.0)
        acc = tl.dot(weights.to(v.dtype), v, acc, input_precision=PRECISION)
        row_max = new_max
    return acc, row_max, row_sum


# Arguments that change from step to step must not each bring a new compilation.
@triton.jit(
    do_not_specialize=["num_query_blocks", "heads_per_section", "window", "table_row_stride"],
    do_not_specialize_on_alignment=["cu_seqlens_q_ptr", "seq_lens_ptr", "block_table_ptr"],
)
def attention_prefill_kernel(
    q_ptr,
    k_source,
    v_source,
    out_ptr,
    cu_seqlens_q_ptr,
    seq_lens_ptr,
    block_table_ptr,
    sinks_ptr,
    qk_scale,
    window,
    q_row_stride,
    q_head_stride,
    k_row_stride,
    k_head_stride,
    v_row_stride,
    v_head_stride,
    out_row_stride,
    table_row_stride,
    num_query_blocks,
    heads_per_section,
    Q_PER_KV: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    SEQS_BEFORE: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    CAUSAL: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    USE_TMA: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Grid: (query blocks × heads, sequences). BLOCK_SIZE 0 means dense keys and values."""
    seq = tl.program_id(1)
    # A section of heads, whose keys share the L2 cache, runs its longest query blocks first.
    section_programs = num_query_blocks * heads_per_section
    section = tl.program_id(0) // section_programs
    place = tl.program_id(0) % section_programs
    head = section * heads_per_section + place % heads_per_section
    query_block = num_query_blocks - 1 - place // heads_per_section

    q_start = tl.load(cu_seqlens_q_ptr + seq).to(tl.int32)
    q_len = tl.load(cu_seqlens_q_ptr + seq + 1).to(tl.int32) - q_start
    if query_block * BLOCK_M >= q_len:
        return
    kv_len = tl.load(seq_lens_ptr + seq).to(tl.int32)
    kv_row_start = 0
    if BLOCK_SIZE == 0:
        before = tl.arange(0, SEQS_BEFORE)
        kv_row_start = tl.sum(tl.load(seq_lens_ptr + before, mask=before < seq, other=0), 0)
        kv_row_start = kv_row_start.to(tl.int32)
    kv_head = head // Q_PER_KV

    queries = query_block * BLOCK_M + tl.arange(0, BLOCK_M)
    dims = tl.arange(0, BLOCK_D)
    inside = (queries < q_len)[:, None] & (dims < HEAD_DIM)[None, :]
    q_rows = (q_start + queries).to(tl.int64)[:, None]
    q = tl.load(
        q_ptr + q_rows * q_row_stride + head * q_head_stride + dims[None, :], mask=inside, other=0.0
    )

    first_position = kv_len - q_len + query_block * BLOCK_M
    end = kv_len
    begin = 0
    full_begin = 0
    full_end = kv_len // BLOCK_N * BLOCK_N
    if CAUSAL:
        end = tl.minimum(first_position + BLOCK_M, kv_len)
        full_end = (first_position + 1) // BLOCK_N * BLOCK_N
        if HAS_WINDOW:
            begin = tl.maximum(first_position - window + 1, 0) // BLOCK_N * BLOCK_N
            full_begin = tl.maximum(end - window, 0)
            full_begin = (full_begin + BLOCK_N - 1) // BLOCK_N * BLOCK_N
            full_end = tl.maximum(full_end, full_begin)

    if HAS_SINKS:  # The sink is a key of value 0, seen first.
        sink = tl.load(sinks_ptr + head).to(tl.float32) * LOG2_E
        row_max = tl.zeros((BLOCK_M,), tl.float32) + sink
        row_sum = tl.full((BLOCK_M,), 1.0, tl.float32)
    else:
        row_max = tl.full((BLOCK_M,), float("-inf"), tl.float32)
        row_sum = tl.zeros((BLOCK_M,), tl.float32)
    state = (tl.zeros((BLOCK_M, BLOCK_D), tl.float32), row_max, row_sum)
    table_row_ptr = block_table_ptr
    if BLOCK_SIZE > 0:
        table_row_ptr += seq.to(tl.int64) * table_row_stride
    if HAS_WINDOW:
        state = _attend(
            state, q, k_source, v_source, table_row_ptr, kv_row_start, kv_head,
            begin, tl.minimum(full_begin, end), first_position, kv_len, qk_scale, window,
            k_row_stride, k_head_stride, v_row_stride, v_head_stride,
            HEAD_DIM, BLOCK_SIZE, BLOCK_M, BLOCK_N, BLOCK_D,
            MASK=True, CAUSAL=CAUSAL, HAS_WINDOW=HAS_WINDOW, USE_TMA=USE_TMA, PRECISION=PRECISION,
        )  # fmt: skip
    state = _attend(
        state, q, k_source, v_source, table_row_ptr, kv_row_start, kv_head,
        full_begin, full_end, first_position, kv_len, qk_scale, window,
        k_row_stride, k_head_stride, v_row_stride, v_head_stride,
        HEAD_DIM, BLOCK_SIZE, BLOCK_M, BLOCK_N, BLOCK_D,
        MASK=False, CAUSAL=CAUSAL, HAS_WINDOW=HAS_WINDOW, USE_TMA=USE_TMA, PRECISION=PRECISION,
    )  # fmt: skip
    state = _attend(
        state, q, k_source, v_source, table_row_ptr, kv_row_start, kv_head,
        full_end, end, first_position, kv_len, qk_scale, window,
        k_row_stride, k_head_stride, v_row_stride, v_head_stride,
        HEAD_DIM, BLOCK_SIZE, BLOCK_M, BLOCK_N, BLOCK_D,
        MASK=True, CAUSAL=CAUSAL, HAS_WINDOW=HAS_WINDOW, USE_TMA=USE_TMA, PRECISION=PRECISION,
    )  # fmt: skip
    acc, row_max, row_sum = state
    # A sequence without keys has a sum of 0 and an accumulator of 0: its result is 0.
    out = acc / tl.where(row_sum == 0.0, 1.0, row_sum)[:, None]
    out_offsets = q_rows * out_row_stride + head * HEAD_DIM + dims[None, :]
    tl.store(out_ptr + out_offsets, out.to(out_ptr.dtype.element_ty), mask=inside)


def attention_prefill(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    cu_seqlens_q: Tensor,
    seq_lens: Tensor,
    max_q_len: int,
    block_table: Tensor | None,
    causal: bool,
    scale: float,
    window: int | None,
    sinks: Tensor | None,
    out: Tensor,
) -> Tensor:
    num_seqs, head_dim = seq_lens.shape[0], q.shape[2]
    tma_ready = _tma_ready(k) and _tma_ready(v)
    problem = Problem(
        num_seqs=num_seqs,
        max_q_len=max_q_len,
        num_q_heads=q.shape[1],
        num_kv_heads=k.shape[-2],
        head_dim=head_dim,
        dtype=q.dtype,
        block_size=0 if block_table is None else k.shape[1],
        causal=causal,
        tma_ready=tma_ready,
        heads_ready=tma_ready
        and _tma_ready(q)
        and all(x.stride(-2) == head_dim for x in (q, k, v)),
        is_plain=window is None and sinks is None,
    )
    arguments: dict[str, Any] = {
        "cu_seqlens_q": cu_seqlens_q,
        "seq_lens": seq_lens,
        "max_q_len": max_q_len,
        "block_table": block_table,
        "causal": causal,
        "scale": scale,
        "out": out,
    }
    gpu = gpu_spec(q.device)
    if runs_on_hopper(problem, gpu):
        return hopper.launch(q, k, v, **arguments)
    how = choose_launch(problem, gpu)
    return launch(how, q, k, v, window=window, sinks=sinks, **arguments)


def launch(
    how: Launch,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    cu_seqlens_q: Tensor,
    seq_lens: Tensor,
    max_q_len: int,
    block_table: Tensor | None,
    causal: bool,
    scale: float,
    window: int | None,
    sinks: Tensor | None,
    out: Tensor,
) -> Tensor:
    """Run the kernel as `how` says; the arguments are attention_prefill's."""
    num_q_heads, head_dim = q.shape[1:]
    num_seqs = seq_lens.shape[0]
    block_d = max(16, triton.next_power_of_2(head_dim))
    num_query_blocks = triton.cdiv(max_q_len, how.block_m)
    sources = (_descriptor(x, how.block_n, block_d) for x in (k, v)) if how.use_tma else (k, v)
    attention_prefill_kernel[(num_query_blocks * num_q_heads, num_seqs)](
        q,
        *sources,
        out,
        cu_seqlens_q,
        seq_lens,
        block_table,
        sinks,
        scale * LOG2_E.value,
        0 if window is None else window,
        q.stride(0),
        q.stride(1),
        k.stride(-3),
        k.stride(-2),
        v.stride(-3),
        v.stride(-2),
        out.stride(0),
        0 if block_table is None else block_table.stride(0),
        num_query_blocks,
        how.heads_per_section,
        Q_PER_KV=num_q_heads // k.shape[-2],
        HEAD_DIM=head_dim,
        BLOCK_SIZE=0 if block_table is None else k.shape[1],
        SEQS_BEFORE=max(16, triton.next_power_of_2(num_seqs)) if block_table is None else 1,
        BLOCK_M=how.block_m,
        BLOCK_N=how.block_n,
        BLOCK_D=block_d,
        CAUSAL=causal,
        HAS_WINDOW=window is not None,
        HAS_SINKS=sinks is not None,
        USE_TMA=how.use_tma,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        num_warps=how.num_warps,
        num_stages=how.num_stages,
    )
    return out


def _rows(x: Tensor) -> Tensor:
    """Dense [rows, heads, dim], or a paged cache seen as such."""
    return x if x.dim() == 3 else x.flatten(0, 1)


def _tma_ready(x: Tensor) -> bool:
    """What a tensor map asks for: 16-byte aligned base and strides; a cache without gaps."""
    no_gaps = x.dim() == 3 or x.stride(0) == x.shape[1] * x.stride(1)
    item = x.element_size()
    aligned = all(stride * item % 16 == 0 for stride in x.stride()[-3:-1])
    return no_gaps and aligned and x.data_ptr() % 16 == 0


def _descriptor(x: Tensor, block_n: int, block_d: int) -> TensorDescriptor:
    rows = _rows(x)
    return TensorDescriptor(rows, rows.shape, rows.stride(), [block_n, 1, block_d])
