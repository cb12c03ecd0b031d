"""Flash decoding (Dao et al. 2023, https://pytorch.org/blog/flash-decoding/), in Triton.

A sequence's keys are cut into chunks. A program folds chunks for all query heads of one KV head,
which are the columns of one small matrix, so that K and V are read once. The last program to finish
a (sequence, KV head) pair folds the partial results together, in their order.

Chunks are folded into groups of 4, groups into blocks of 4, blocks into the result. What is summed
with what is then a matter of the sequence's length alone, but a program may store whole groups or
blocks, where it has them, instead of chunks: of 8192 keys in a large batch 2 results, not 32.
"""

import math
from functools import cache

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from lite_llama.kernel_lib.gpu import gpu_spec
from lite_llama.ops.attention_decode.launch import Launch, Problem, choose_launch

LOG2_E = tl.constexpr(1.4426950408889634)
# Programs of each head beyond those of equally long sequences, for those that are longer.
MAX_SPARE = 64
# Columns of the smallest tensor-core tile.
MIN_COLUMNS = 8
# Registers of a thread whose states have no more numbers than this. Left to itself the assembler
# takes 168 and more, for what is touched once a chunk or at the end: 3 programs of 4 warps an SM.
MAX_REGISTERS, MAX_STATE = 128, 8
# A maximum of nothing that may be subtracted from -inf.
LOWEST = tl.constexpr(-3.4028234663852886e38)


@triton.jit
def _tile_rows(
    k_ptr,
    v_ptr,
    table_row_ptr,
    start,
    end,
    K_STRIDES: tl.constexpr,
    V_STRIDES: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr,
    RUN: tl.constexpr,
    ALIGNMENT: tl.constexpr,
):
    """Where BLOCK_N keys from `start` on lie in the caches, as pointers: (of k, of v).

    A block is looked up once for RUN keys. Those at and past `end` are said to lie where the
    sequence has a block too, so that reading there is not forbidden.
    """
    last_run = tl.maximum(end - 1, 0) // RUN
    runs = tl.minimum(start // RUN + tl.arange(0, BLOCK_N // RUN), last_run)
    blocks = tl.load(table_row_ptr + runs // (BLOCK_SIZE // RUN)).to(tl.int64)
    k_runs, v_runs = k_ptr + blocks * K_STRIDES[0], v_ptr + blocks * V_STRIDES[0]
    if RUN < BLOCK_SIZE:
        first_slots = (runs % (BLOCK_SIZE // RUN) * RUN).to(tl.int64)
        k_runs += first_slots * K_STRIDES[1]
        v_runs += first_slots * V_STRIDES[1]
    in_run = tl.arange(0, RUN).to(tl.int64)[None, :]
    k_rows = (k_runs[:, None] + in_run * K_STRIDES[1]).reshape(BLOCK_N)
    v_rows = (v_runs[:, None] + in_run * V_STRIDES[1]).reshape(BLOCK_N)
    # The compiler forgets what divides a pointer when the shape changes.
    return tl.multiple_of(k_rows, ALIGNMENT), tl.multiple_of(v_rows, ALIGNMENT)


@triton.jit
def _after_loads(x):
    """x, a load that is not waited for before the loads that stand above this are on their way.

    Left to itself the compiler writes each to shared memory as it comes, one latency after another.
    """
    return tl.inline_asm_elementwise(
        "mov.b32 $0, $1;", "=r,r", [x], dtype=x.dtype, is_pure=False,
        pack=32 // x.dtype.primitive_bitwidth,
    )  # fmt: skip


@triton.jit
def _fold_tile(q, k, v, seen, qk_scale, acc, row_max, sums, PRECISION: tl.constexpr):
    """Softmax-weighted values so far, and those of one more tile: (acc, maximum, sums).

    Keys and dimensions are rows, heads are columns: tensor cores take 8 columns, but 16 rows.
    `sums` has a part of each head's sum for each key of a tile: nothing passes between threads.
    """
    scores = tl.dot(k, q, input_precision=PRECISION)
    scores = tl.where(seen[:, None], scores, float("-inf"))
    new_max = tl.maximum(row_max, tl.max(scores, 0) * qk_scale)
    weights = tl.exp2(scores * qk_scale - new_max[None, :])
    rescale = tl.exp2(row_max - new_max)[None, :]
    sums = sums * rescale + weights
    acc = tl.dot(v, weights.to(v.dtype), acc * rescale, input_precision=PRECISION)
    return acc, new_max, sums


@triton.jit
def _load_and_fold(
    q, k_ptr, v_ptr, table_row_ptr, start, begin, end, dims, real_dim, qk_scale,
    acc, row_max, sums,
    K_STRIDES: tl.constexpr, V_STRIDES: tl.constexpr, BLOCK_SIZE: tl.constexpr,
    BLOCK_N: tl.constexpr, RUN: tl.constexpr, ALIGNMENT: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """`_fold_tile` of those of BLOCK_N keys from `start` on that lie in [begin, end)."""
    k_rows, v_rows = _tile_rows(
        k_ptr, v_ptr, table_row_ptr, start, end, K_STRIDES, V_STRIDES,
        BLOCK_SIZE, BLOCK_N, RUN, ALIGNMENT,
    )  # fmt: skip
    seen = _seen(start, begin, end, BLOCK_N)
    # A key that is not seen may be anything, its value may not: 0 times NaN is NaN.
    k = tl.load(k_rows[:, None] + dims[None, :], mask=real_dim[None, :], other=0.0)
    v = tl.load(v_rows[None, :] + dims[:, None], mask=seen[None, :] & real_dim[:, None], other=0.0)
    return _fold_tile(q, k, v, seen, qk_scale, acc, row_max, sums, PRECISION)


@triton.jit
def _seen(start, begin, end, BLOCK_N: tl.constexpr):
    """Which of BLOCK_N keys from `start` on lie in [begin, end); `begin` None: before `end`."""
    # The differences are numbers of the whole program, a comparison each is left to a thread.
    seen = tl.arange(0, BLOCK_N) < end - start
    if begin is not None:
        seen &= tl.arange(0, BLOCK_N) >= begin - start
    return seen


@triton.jit
def _store_partial(
    partial_ptr, max_ptr, sum_ptr, rows, real_row, inside, state, dims, HEAD_DIM: tl.constexpr
):  # fmt: skip
    """A state: rows of the partial results [rows, HEAD_DIM], their maxima and sums."""
    tl.store(partial_ptr + rows[None, :] * HEAD_DIM + dims[:, None], state[0], mask=inside)
    tl.store(max_ptr + rows, state[1], mask=real_row)
    tl.store(sum_ptr + rows, state[2], mask=real_row)


@triton.jit
def _nothing_seen(BLOCK_N: tl.constexpr, COLUMNS: tl.constexpr, BLOCK_D: tl.constexpr):
    """The state before any key: (acc, maximum, sums)."""
    acc = tl.zeros((BLOCK_D, COLUMNS), tl.float32)
    sums = tl.zeros((BLOCK_N, COLUMNS), tl.float32)
    return acc, tl.full((COLUMNS,), float("-inf"), tl.float32), sums


@triton.jit
def _empty(COLUMNS: tl.constexpr, BLOCK_D: tl.constexpr):
    """The state of no key: (acc, maximum, sum)."""
    acc = tl.zeros((BLOCK_D, COLUMNS), tl.float32)
    return acc, tl.full((COLUMNS,), LOWEST, tl.float32), tl.zeros((COLUMNS,), tl.float32)


@triton.jit
def _fold(a, b):
    """The state of a's keys and b's; if one of them is empty, exactly the other.

    It rounds alike wherever it stands: what is fused is said, not left to the compiler.
    """
    maximum = tl.maximum(a[1], b[1])
    a_weight, b_weight = tl.exp2(a[1] - maximum), tl.exp2(b[1] - maximum)
    acc = tl.fma(b[0], b_weight[None, :], a[0] * a_weight[None, :])
    return acc, maximum, tl.fma(b[2], b_weight, a[2] * a_weight)


@triton.jit
def _fold_four(states, FIRST: tl.constexpr):
    """Four states from FIRST on, one after the other, as a program folds its own."""
    state = _fold(states[FIRST], states[FIRST + 1])
    return _fold(_fold(state, states[FIRST + 2]), states[FIRST + 3])


@triton.jit
def _fold_block(units, COUNT: tl.constexpr):
    """The state of a block of 16 chunks, of those of 16 chunks, 4 groups or 1 block."""
    if COUNT == 1:
        block = units[0]
    elif COUNT == 4:
        block = _fold_four(units, 0)
    else:
        groups = (
            _fold_four(units, 0), _fold_four(units, 4), _fold_four(units, 8), _fold_four(units, 12)
        )  # fmt: skip
        block = _fold_four(groups, 0)
    return block


@triton.jit
def _mean(state):
    """The weighted mean of a state's values; without a key and a sink: 0."""
    return state[0] * (1.0 / tl.where(state[2] == 0.0, 1.0, state[2]))[None, :]


@triton.jit
def _load_partial(
    partial_ptr, max_ptr, sum_ptr, rows, real_row, inside, dims, HEAD_DIM: tl.constexpr
):  # fmt: skip
    """What `_store_partial` stored; the empty state where nothing is `inside`."""
    # .cg: other SMs wrote these, the L1 cache is no witness.
    acc = tl.load(
        partial_ptr + rows[None, :] * HEAD_DIM + dims[:, None],
        mask=inside, other=0.0, cache_modifier=".cg",
    )  # fmt: skip
    maximum = tl.load(max_ptr + rows, real_row, LOWEST, cache_modifier=".cg")
    return acc, maximum, tl.load(sum_ptr + rows, real_row, 0.0, cache_modifier=".cg")


@triton.jit
def _fold_units(
    partial_ptr, max_ptr, sum_ptr, first_rows, real_row, real_dim, num_units, total, dims,
    HEAD_DIM: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    """`total` and the stored units after it: AT_ONCE of 1, 4 or 16 are a block of 16 chunks.

    Their loads are in flight together, and a thread folds its own elements.
    """
    for start in range(0, num_units, AT_ONCE):
        units = (total,)[:0]
        for i in tl.static_range(AT_ONCE):
            real = real_row & (start + i < num_units)
            units += (
                _load_partial(
                    partial_ptr, max_ptr, sum_ptr, first_rows + start + i, real,
                    real[None, :] & real_dim[:, None], dims, HEAD_DIM,
                ),
            )  # fmt: skip
        total = _fold(total, _fold_block(units, AT_ONCE))
    return total


@triton.jit
def _combine(
    partial_ptr,
    max_ptr,
    sum_ptr,
    first_rows,
    real_row,
    num_chunks,
    total_max,
    total_sum,
    HEAD_DIM: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ROWS: tl.constexpr,
    AT_ONCE: tl.constexpr,
):
    """All heads' results [ROWS, BLOCK_D] from their chunks' partial ones, in the chunks' order.

    A thread folds its own elements, so that nothing passes between threads; the loads of AT_ONCE
    chunks are in flight together.
    """
    total = tl.zeros((ROWS, BLOCK_D), tl.float32)
    dims = tl.arange(0, BLOCK_D)
    for start in range(0, num_chunks, AT_ONCE):
        partials, maxima, sums = (total,)[:0], (total,)[:0], (total,)[:0]
        new_max = total_max
        for i in tl.static_range(AT_ONCE):
            rows = first_rows + start + i
            inside = real_row & (start + i < num_chunks)
            # .cg: other SMs wrote these, the L1 cache is no witness.
            row_max = tl.load(max_ptr + rows, inside, LOWEST, cache_modifier=".cg")
            maxima += (row_max,)
            sums += (tl.load(sum_ptr + rows, inside, 0.0, cache_modifier=".cg"),)
            partials += (
                tl.load(
                    partial_ptr + rows[:, None] * HEAD_DIM + dims[None, :],
                    mask=inside[:, None] & (dims < HEAD_DIM)[None, :],
                    other=0.0,
                    cache_modifier=".cg",
                ),
            )
            new_max = tl.maximum(new_max, row_max)
        rescale = tl.exp2(total_max - new_max)
        total *= rescale[:, None]
        total_sum *= rescale
        for i in tl.static_range(AT_ONCE):
            weight = tl.exp2(maxima[i] - new_max)
            total += partials[i] * weight[:, None]
            total_sum += sums[i] * weight
        total_max = new_max
    return total / total_sum[:, None]


@triton.jit
def _before_keys(
    sinks_ptr, heads, real_head, COLUMNS: tl.constexpr, BLOCK_D: tl.constexpr,
    HAS_SINKS: tl.constexpr,
):  # fmt: skip
    """The state before the first key: empty, or a sink's: a value of 0, in the sum only."""
    acc, maximum, total_sum = _empty(COLUMNS, BLOCK_D)
    if HAS_SINKS:
        sinks = tl.load(sinks_ptr + heads, mask=real_head, other=0.0).to(tl.float32)
        maximum, total_sum = tl.maximum(sinks * LOG2_E, LOWEST), total_sum + 1.0
    return acc, maximum, total_sum


@triton.jit
def _place(
    slot, num_slots, seq_lens_ptr, num_seqs, window,
    SEQUENCES: tl.constexpr, HAS_WINDOW: tl.constexpr,
):  # fmt: skip
    """Whose program the one at `slot` of `num_slots` is: (sequence, number in it, how many it has).

    Each sequence has one, and of the others as many as fit its share of all keys, rounded down:
    places left free cost less than a program that waits for one. The last slots may be nobody's.
    """
    seqs = tl.arange(0, SEQUENCES)
    real = seqs < num_seqs
    lens = tl.load(seq_lens_ptr + seqs, mask=real, other=0).to(tl.int32)
    if HAS_WINDOW:
        lens = tl.minimum(lens, window)
    # A little less than there are, so that no rounding gives away one too many.
    others = (num_slots - num_seqs) * 0.99999
    per_key = others / tl.maximum(tl.sum(lens).to(tl.float32), 1.0)
    counts = tl.where(real, 1 + (lens * per_key).to(tl.int32), 0)
    before = tl.cumsum(counts) <= slot
    seq = tl.sum((before & real).to(tl.int32))
    first = tl.sum(tl.where(before, counts, 0))
    return seq, slot - first, tl.sum(tl.where(seqs == seq, counts, 0))


@triton.jit
def _share(num_chunks, num_programs):
    """Chunks of a program, and of each unit it stores: chunks, or whole groups or blocks."""
    share = tl.maximum(tl.cdiv(num_chunks, num_programs), 1)
    share = tl.where(share < 4, share, tl.cdiv(share, 4) * 4)
    share = tl.where(share < 16, share, tl.cdiv(share, 16) * 16)
    unit = tl.where(share < 4, 1, tl.where(share < 16, 4, 16))
    # A program with all chunks stores none, and folds to the end.
    return share, tl.where(share < num_chunks, unit, 16)


# Arguments that differ between steps and models must not each bring a new compilation.
@triton.jit(
    do_not_specialize=[
        "window",
        "table_row_stride",
        "num_kv_heads",
        "max_chunks",
        "min_chunk",
        "num_seqs",
    ],
    do_not_specialize_on_alignment=["seq_lens_ptr", "block_table_ptr"],
)
def attention_decode_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    partial_ptr,
    max_ptr,
    sum_ptr,
    arrivals_ptr,
    block_table_ptr,
    seq_lens_ptr,
    sinks_ptr,
    qk_scale,
    window,
    q_row_stride,
    q_head_stride,
    table_row_stride,
    num_kv_heads,
    max_chunks,
    min_chunk,
    num_seqs,
    Q_PER_KV: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    K_STRIDES: tl.constexpr,
    V_STRIDES: tl.constexpr,
    BLOCK_SIZE: tl.constexpr,
    RUN: tl.constexpr,
    ALIGNMENT: tl.constexpr,
    COLUMNS: tl.constexpr,
    GROUP_ROWS: tl.constexpr,
    FIRST_N: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_D: tl.constexpr,
    ONE_CHUNK: tl.constexpr,
    SEQUENCES: tl.constexpr,
    HAS_WINDOW: tl.constexpr,
    HAS_SINKS: tl.constexpr,
    PRECISION: tl.constexpr,
    OVERLAP: tl.constexpr,
    TRIGGER: tl.constexpr,
):
    """Grid: (KV heads, sequences, programs that share a sequence's chunks), or, if SEQUENCES is not
    0 but a number not less than the sequences', (KV heads, programs of all sequences).

    K_STRIDES, V_STRIDES: of blocks, tokens and heads; constants, so that only a block's place is
    computed. RUN: keys that lie in one tile and one block. ALIGNMENT: of all of them, in bytes.
    FIRST_N: keys that are loaded before the wait, as one tile; BLOCK_N: of every other tile.
    OVERLAP: in a chain, where a program has one chunk (ONE_CHUNK), so that what it reads first is
    known before the wait.
    """
    if TRIGGER:
        gdc_launch_dependents()
    kv_head = tl.program_id(0)
    seq, part, num_parts = tl.program_id(1), tl.program_id(2), tl.num_programs(2)
    if SEQUENCES > 0:
        seq, part, num_parts = _place(
            seq, tl.num_programs(1), seq_lens_ptr, num_seqs, window, SEQUENCES, HAS_WINDOW
        )
        if seq >= num_seqs:
            return
    kv_len = tl.load(seq_lens_ptr + seq).to(tl.int32)
    first = 0
    window_begin = None
    if HAS_WINDOW:
        window_begin = kv_len - window
        first = tl.maximum(window_begin, 0) // RUN * RUN
    num_keys = kv_len - first
    chunk = tl.cdiv(tl.maximum(tl.cdiv(num_keys, max_chunks), min_chunk), BLOCK_N) * BLOCK_N
    num_chunks = tl.cdiv(num_keys, chunk)
    share, unit = 1, 1
    if not ONE_CHUNK:
        share, unit = _share(num_chunks, num_parts)
    num_working = tl.cdiv(num_chunks, share)
    alone = num_working <= 1
    # A sequence of length 0 has no chunk, but its result is written: 0.
    if part >= tl.maximum(num_working, 1):
        return

    table_row_ptr = block_table_ptr + seq.to(tl.int64) * table_row_stride
    k_ptr += kv_head * K_STRIDES[2]
    v_ptr += kv_head * V_STRIDES[2]
    dims = tl.arange(0, BLOCK_D)
    real_dim = dims < HEAD_DIM
    if OVERLAP:
        # The first tile is loaded before the wait, but for the newest key, which the kernel before
        # writes: the others are of earlier steps. Idle programs have left: all that write wait.
        first_begin = first + part * chunk
        first_end = tl.minimum(first_begin + chunk, kv_len)
        first_seen = _seen(first_begin, window_begin, first_end, FIRST_N)
        k_rows, v_rows = _tile_rows(
            k_ptr, v_ptr, table_row_ptr, first_begin, first_end, K_STRIDES, V_STRIDES,
            BLOCK_SIZE, FIRST_N, RUN, ALIGNMENT,
        )  # fmt: skip
        first_k_ptr = k_rows[:, None] + dims[None, :]
        first_v_ptr = v_rows[None, :] + dims[:, None]
        newest = tl.arange(0, FIRST_N) == kv_len - 1 - first_begin
        old = first_seen & ~newest
        k = tl.load(first_k_ptr, mask=old[:, None] & real_dim[None, :], other=0.0)
        v = tl.load(first_v_ptr, mask=old[None, :] & real_dim[:, None], other=0.0)
        gdc_wait()
        # `other` leaves what is there: no value passes through an instruction.
        k = tl.load(first_k_ptr, mask=newest[:, None] & real_dim[None, :], other=k)
        v = tl.load(first_v_ptr, mask=newest[None, :] & real_dim[:, None], other=v)

    head_in_group = tl.arange(0, COLUMNS)
    real_row = head_in_group < Q_PER_KV
    heads = kv_head * Q_PER_KV + head_in_group
    inside = real_row[None, :] & real_dim[:, None]
    q_offsets = seq.to(tl.int64) * q_row_stride + heads[None, :] * q_head_stride + dims[:, None]
    q = tl.load(q_ptr + q_offsets, mask=inside, other=0.0)
    if OVERLAP:
        k, v = _after_loads(k), _after_loads(v)
    out_rows = seq.to(tl.int64) * num_kv_heads * Q_PER_KV + heads
    # Partial results lie [sequence, query head, unit].
    partial_rows = out_rows * max_chunks

    total = _before_keys(sinks_ptr, heads, real_row, COLUMNS, BLOCK_D, HAS_SINKS)
    acc, row_max, sums = _nothing_seen(FIRST_N, COLUMNS, BLOCK_D)
    if OVERLAP:
        if num_chunks > 0:
            acc, row_max, sums = _fold_tile(
                q, k, v, first_seen, qk_scale, acc, row_max, sums, PRECISION
            )
        # As of a tile of the loop.
        sums = tl.sum(tl.reshape(sums, (FIRST_N // BLOCK_N, BLOCK_N, COLUMNS)), 0)
        if first_begin + FIRST_N < first_end:  # A loop that never runs would still find its tiles.
            for start in range(first_begin + FIRST_N, first_end, BLOCK_N):
                acc, row_max, sums = _load_and_fold(
                    q, k_ptr, v_ptr, table_row_ptr, start, window_begin, first_end, dims, real_dim,
                    qk_scale, acc, row_max, sums,
                    K_STRIDES, V_STRIDES, BLOCK_SIZE, BLOCK_N, RUN, ALIGNMENT, PRECISION,
                )  # fmt: skip
    else:
        index = part * share
        last = tl.minimum(index + share, num_chunks)
        begin = first + index * chunk
        end = tl.minimum(first + last * chunk, kv_len)
        chunk_end = tl.minimum(begin + chunk, end)
        group, block = _empty(COLUMNS, BLOCK_D), _empty(COLUMNS, BLOCK_D)
        for start in range(begin, end, BLOCK_N):
            acc, row_max, sums = _load_and_fold(
                q, k_ptr, v_ptr, table_row_ptr, start, window_begin, end, dims, real_dim,
                qk_scale, acc, row_max, sums,
                K_STRIDES, V_STRIDES, BLOCK_SIZE, BLOCK_N, RUN, ALIGNMENT, PRECISION,
            )  # fmt: skip
            # Nothing leaves a thread here but the sum: a stop at each chunk's end would show.
            if not ONE_CHUNK and start + BLOCK_N >= chunk_end:
                group = _fold(group, (acc, row_max, tl.sum(sums, 0)))
                acc, row_max, sums = _nothing_seen(BLOCK_N, COLUMNS, BLOCK_D)
                chunk_end = tl.minimum(chunk_end + chunk, end)
                index += 1
                if (index % tl.minimum(unit, 4) == 0) | (index == last):
                    block = _fold(block, group)
                    group = _empty(COLUMNS, BLOCK_D)
                    if (index % unit == 0) | (index == last):
                        if alone:
                            total = _fold(total, block)
                        else:
                            _store_partial(
                                partial_ptr, max_ptr, sum_ptr, partial_rows + (index - 1) // unit,
                                real_row, inside, block, dims, HEAD_DIM,
                            )  # fmt: skip
                        block = _empty(COLUMNS, BLOCK_D)

    if alone:
        if ONE_CHUNK:
            total = _fold(total, (acc, row_max, tl.sum(sums, 0)))
        out_offsets = out_rows[None, :] * HEAD_DIM + dims[:, None]
        tl.store(out_ptr + out_offsets, _mean(total).to(out_ptr.dtype.element_ty), mask=inside)
        return

    if ONE_CHUNK:
        _store_partial(
            partial_ptr, max_ptr, sum_ptr, partial_rows + part, real_row, inside,
            (acc, row_max, tl.sum(sums, 0)), dims, HEAD_DIM,
        )  # fmt: skip

    # Every warp's stores come before the arrival, which releases them to the last program.
    tl.debug_barrier()
    arrival_ptr = arrivals_ptr + seq * num_kv_heads + kv_head
    sharing = tl.minimum(num_working, num_parts)
    if tl.atomic_add(arrival_ptr, 1, sem="acq_rel", scope="gpu") == sharing - 1:
        tl.store(arrival_ptr, 0)
        # Of the tile's rows only the first few are heads: the rest would cost registers.
        in_group = tl.arange(0, GROUP_ROWS)
        real_head = in_group < Q_PER_KV
        group_heads = kv_head * Q_PER_KV + in_group
        group_rows = seq.to(tl.int64) * num_kv_heads * Q_PER_KV + group_heads
        combined = _before_keys(sinks_ptr, group_heads, real_head, GROUP_ROWS, BLOCK_D, HAS_SINKS)
        first_rows = group_rows * max_chunks
        # Code for chunks that are not there takes its time too.
        if OVERLAP:
            if num_chunks <= 4:
                out = _combine(
                    partial_ptr, max_ptr, sum_ptr, first_rows, real_head, num_chunks,
                    combined[1], combined[2], HEAD_DIM, BLOCK_D, GROUP_ROWS, 4,
                )  # fmt: skip
            elif num_chunks <= 16:
                out = _combine(
                    partial_ptr, max_ptr, sum_ptr, first_rows, real_head, num_chunks,
                    combined[1], combined[2], HEAD_DIM, BLOCK_D, GROUP_ROWS, 16,
                )  # fmt: skip
            else:
                out = _combine(
                    partial_ptr, max_ptr, sum_ptr, first_rows, real_head, num_chunks,
                    combined[1], combined[2], HEAD_DIM, BLOCK_D, GROUP_ROWS, 32,
                )  # fmt: skip
            tl.store(
                out_ptr + group_rows[:, None] * HEAD_DIM + dims[None, :],
                out.to(out_ptr.dtype.element_ty),
                mask=real_head[:, None] & (dims < HEAD_DIM)[None, :],
            )
        else:
            num_units = tl.cdiv(num_chunks, unit)
            if unit == 16:
                combined = _fold_units(
                    partial_ptr, max_ptr, sum_ptr, first_rows, real_head, real_dim, num_units,
                    combined, dims, HEAD_DIM, 1,
                )  # fmt: skip
            elif (unit == 4) | (num_units <= 4):
                combined = _fold_units(
                    partial_ptr, max_ptr, sum_ptr, first_rows, real_head, real_dim, num_units,
                    combined, dims, HEAD_DIM, 4,
                )  # fmt: skip
            else:
                combined = _fold_units(
                    partial_ptr, max_ptr, sum_ptr, first_rows, real_head, real_dim, num_units,
                    combined, dims, HEAD_DIM, 16,
                )  # fmt: skip
            tl.store(
                out_ptr + group_rows[None, :] * HEAD_DIM + dims[:, None],
                _mean(combined).to(out_ptr.dtype.element_ty),
                mask=real_head[None, :] & real_dim[:, None],
            )


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
    overlap: float = -1.0,
    how: Launch | None = None,
) -> Tensor:
    problem = Problem(
        num_seqs=q.shape[0],
        num_kv_heads=k_cache.shape[2],
        q_per_kv=q.shape[1] // k_cache.shape[2],
        head_dim=q.shape[2],
        dtype=q.dtype,
        max_kv_len=block_table.shape[1] * k_cache.shape[1],
        in_chain=overlap >= 0,
    )
    return launch(
        how or choose_launch(problem, gpu_spec(q.device)),
        q,
        k_cache,
        v_cache,
        block_table=block_table,
        seq_lens=seq_lens,
        scale=scale,
        window=window,
        sinks=sinks,
        overlap=overlap,
    )


def launch(
    how: Launch,
    q: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    *,
    block_table: Tensor,
    seq_lens: Tensor,
    scale: float,
    window: int | None,
    sinks: Tensor | None,
    overlap: float = -1.0,
) -> Tensor:
    """Run the kernel as `how` says; the arguments are attention_decode's."""
    num_seqs, num_q_heads, head_dim = q.shape
    in_chain = overlap >= 0 and gpu_spec(q.device).has_pdl
    block_size, num_kv_heads = k_cache.shape[1:3]
    q_per_kv = num_q_heads // num_kv_heads
    columns = max(MIN_COLUMNS, triton.next_power_of_2(q_per_kv))
    block_d = max(16, triton.next_power_of_2(head_dim))
    # float32 multiplies in registers of its own.
    small_states = q.itemsize == 2 and columns * block_d <= MAX_STATE * 32 * how.num_warps
    max_chunks = min(how.max_chunks, how.programs_per_head) if in_chain else how.max_chunks
    one_chunk = max_chunks <= how.programs_per_head
    grid = (num_kv_heads, num_seqs, how.programs_per_head)
    width = 0
    if how.by_length and not (in_chain or one_chunk):
        width = 32 if num_seqs <= 32 else max(256, triton.next_power_of_2(num_seqs))
        spare = max(1, min(num_seqs - 1, MAX_SPARE))
        grid = (num_kv_heads, num_seqs * how.programs_per_head + spare, 1)
    out = torch.empty_like(q, memory_format=torch.contiguous_format)
    partial = q.new_empty((num_seqs, num_q_heads, max_chunks, head_dim), dtype=torch.float32)
    maxima, sums = q.new_empty((2, num_seqs, num_q_heads, max_chunks), dtype=torch.float32)
    attention_decode_kernel[grid](
        q,
        k_cache,
        v_cache,
        out,
        partial,
        maxima,
        sums,
        _arrivals(q.device, triton.next_power_of_2(num_seqs * num_kv_heads)),
        block_table,
        seq_lens,
        sinks,
        scale * LOG2_E.value,
        0 if window is None else window,
        q.stride(0),
        q.stride(1),
        block_table.stride(0),
        num_kv_heads,
        max_chunks,
        how.min_chunk,
        num_seqs,
        Q_PER_KV=q_per_kv,
        HEAD_DIM=head_dim,
        K_STRIDES=k_cache.stride()[:3],
        V_STRIDES=v_cache.stride()[:3],
        BLOCK_SIZE=block_size,
        RUN=math.gcd(how.block_n, block_size),
        ALIGNMENT=_alignment(k_cache, v_cache),
        COLUMNS=columns,
        GROUP_ROWS=triton.next_power_of_2(q_per_kv),
        FIRST_N=how.block_n * (how.first_tiles if in_chain else 1),
        BLOCK_N=how.block_n,
        BLOCK_D=block_d,
        ONE_CHUNK=one_chunk,
        SEQUENCES=width,
        HAS_WINDOW=window is not None,
        HAS_SINKS=sinks is not None,
        PRECISION="ieee" if q.dtype == torch.float32 else "tf32",
        OVERLAP=in_chain,
        TRIGGER=in_chain and overlap < 1,
        num_warps=how.num_warps,
        num_stages=how.num_stages,
        maxnreg=MAX_REGISTERS if small_states and not in_chain else None,
        launch_pdl=in_chain,
    )
    return out


def _alignment(*caches: Tensor) -> int:
    """What divides the address of every row in them, up to the 16 bytes of the widest load."""
    return math.gcd(
        16, *(x.data_ptr() for x in caches),
        *(stride * x.itemsize for x in caches for stride in x.stride()[:3]),
    )  # fmt: skip


@cache
def _arrivals(device: torch.device, count: int) -> Tensor:
    """Arrival counters: zero between launches, as the last program of each pair resets its own.

    Launches that share them must run one after the other: one stream a device.
    """
    return torch.zeros(count, dtype=torch.int32, device=device)
