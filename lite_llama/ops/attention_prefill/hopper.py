"""Flash attention as Hopper's units want it (Shah et al. 2024, https://arxiv.org/abs/2407.08608).

In Gluon. One warp of a program loads queries, keys and values through TMA; each of two warpgroups
owns 64 queries. A warpgroup asks the tensor cores for the scores of the next keys and then for the
values of these, and exponentiates those scores while the values are multiplied; meanwhile the
tensor cores work for the other one, as they take turns. Keys are walked from the last to the first,
so that only the first tiles of a walk are masked and the loop over the others is not.

A program runs through many tiles of queries: the loading warp is ahead of the others, and the next
tile's queries and first keys are there when they are done with this one.
"""

import math

import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma,
    warpgroup_mma_wait,
)
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from lite_llama.kernel_lib.gpu import gpu_spec
from lite_llama.ops.attention_prefill.launch import HOPPER_KEYS, HOPPER_QUERIES

# Its name from Triton 3.9 on, and the one before.
load_to_shared = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
LOG2_E = 1.4426950408889634
# Stands in for −inf, as in `kernel.py`.
MASKED = gl.constexpr(-(2.0**100))
_GROUPS = gl.constexpr(2)
# Queries of a warpgroup, the rows of its product, and of a program.
_ROWS = gl.constexpr(64)
BLOCK_M = gl.constexpr(HOPPER_QUERIES)
BLOCK_N = gl.constexpr(HOPPER_KEYS)
# Tiles of keys, and of values, in shared memory.
_STAGES = gl.constexpr(2)
# Tiles of queries there: the next one is loaded while this one is worked on.
_Q_SLOTS = gl.constexpr(2)
# The hardware barriers by which warpgroups take turns, and meet; the compiler uses the first few.
_FIRST_TURN = gl.constexpr(8)
_MEETING = gl.constexpr(10)


@gluon.constexpr_function
def _product_layout(columns):
    """Of [64, columns], in one warpgroup."""
    return gl.NVMMADistributedLayout([3, 0], [4, 1], [16, columns, 16])


@gluon.constexpr_function
def _copy_layout(columns):
    """Of [64, columns] on its way to global memory: 16 bytes a thread."""
    lanes = columns // 8
    return gl.BlockedLayout([1, 8], [32 // lanes, lanes], [4, 1], [1, 0])


@gluon.jit
def _work(turn, order, cu_seqlens_q_ptr, seq_lens_ptr, CAUSAL: gl.constexpr):
    """What a program does in its `turn`, of which there are order[3].

    (sequence, head, position of the first query, its row, queries, keys, their tiles); without
    queries there is nothing to do. Longest query blocks first, and every other turn backwards over
    the programs, so that who had the longest of one gets the shortest of the next.
    """
    num_heads, num_pairs, num_query_blocks, _ = order
    program = gl.program_id(0)
    num_programs = gl.num_programs(0)
    item = turn * num_programs + program
    if turn % 2 == 1:
        item = turn * num_programs + (num_programs - 1 - program)
    pair = item % num_pairs
    seq = pair // num_heads
    head = pair % num_heads
    first_query = (num_query_blocks - 1 - item // num_pairs) * BLOCK_M
    q_start = gl.load(cu_seqlens_q_ptr + seq).to(gl.int32)
    q_len = gl.load(cu_seqlens_q_ptr + seq + 1).to(gl.int32) - q_start
    kv_len = gl.load(seq_lens_ptr + seq).to(gl.int32)
    end = kv_len
    first_position = kv_len - q_len + first_query
    if CAUSAL:
        end = gl.minimum(first_position + BLOCK_M, kv_len)
    tiles = (gl.maximum(end, 0) + BLOCK_N - 1) // BLOCK_N
    queries = gl.maximum(q_len - first_query, 0)
    if first_query < 0:  # an item past the end
        queries = 0
    return seq, head, first_position, q_start + first_query, queries, kv_len, tiles


@gluon.jit
def _load_tile(source, ring, full, empty, count, rows, column):
    """The `count`-th tile of a ring, as soon as its place is free, in len(rows) pieces."""
    place = count % _STAGES
    tile = ring.index(place)
    PIECE: gl.constexpr = source.block_type.shape[0]
    mbarrier.wait(empty.index(place), (count // _STAGES + 1) & 1)
    mbarrier.expect(full.index(place), source.block_type.nbytes * len(rows))
    for i in gl.static_range(len(rows)):
        piece = tile.slice(i * PIECE, PIECE)
        load_to_shared(source, [rows[i], column], full.index(place), piece)


@gluon.jit
def _rows_of_tile(
    tile, table_row_ptr, kv_row_start, kv_len, BLOCK_SIZE: gl.constexpr, PIECE: gl.constexpr
):  # fmt: skip
    """Where the pieces of a tile begin among the rows of the cache; past the end, somewhere."""
    rows = ()
    for i in gl.static_range(BLOCK_N // PIECE):
        key = tile * BLOCK_N + i * PIECE
        if BLOCK_SIZE > 0:
            block = gl.minimum(key, kv_len - 1) // BLOCK_SIZE
            rows += (gl.load(table_row_ptr + block).to(gl.int32) * BLOCK_SIZE + key % BLOCK_SIZE,)
        else:
            rows += (kv_row_start + key,)
    return rows


@gluon.jit
def _produce(arguments, Q_PER_KV: gl.constexpr, BLOCK_SIZE: gl.constexpr, CAUSAL: gl.constexpr):
    """The loading warp."""
    (
        shared, order, q_source, k_source, v_source,
        cu_seqlens_q_ptr, seq_lens_ptr, block_table_ptr, table_row_stride,
    ) = arguments  # fmt: skip
    q_tiles, k_ring, v_ring, q_full, q_empty, k_full, k_empty, v_full, v_empty = shared
    HEAD_DIM: gl.constexpr = k_ring.shape[2]
    PIECE: gl.constexpr = k_source.block_type.shape[0]
    WARP: gl.constexpr = gl.BlockedLayout([1], [32], [1], [0])
    count = 0
    done = 0
    for turn in range(order[3]):
        seq, head, _, q_row, queries, kv_len, tiles = _work(
            turn, order, cu_seqlens_q_ptr, seq_lens_ptr, CAUSAL
        )
        if (queries > 0) & (tiles > 0):
            column = head // Q_PER_KV * HEAD_DIM
            table_row_ptr = block_table_ptr
            kv_row_start = 0
            if BLOCK_SIZE > 0:
                table_row_ptr += seq.to(gl.int64) * table_row_stride
            else:
                for first in range(0, seq, 32):
                    before = first + gl.arange(0, 32, WARP)
                    lens = gl.load(seq_lens_ptr + before, mask=before < seq, other=0)
                    kv_row_start += gl.sum(lens.to(gl.int32), 0)
            rows = _rows_of_tile(tiles - 1, table_row_ptr, kv_row_start, kv_len, BLOCK_SIZE, PIECE)
            for group in gl.static_range(_GROUPS):
                slot = done % _Q_SLOTS * _GROUPS + group
                mbarrier.wait(q_empty.index(slot), (done // _Q_SLOTS + 1) & 1)
                mbarrier.expect(q_full.index(slot), q_source.block_type.nbytes)
                load_to_shared(
                    q_source, [q_row + group * _ROWS, head * HEAD_DIM],
                    q_full.index(slot), q_tiles.index(slot),
                )  # fmt: skip
            _load_tile(k_source, k_ring, k_full, k_empty, count, rows, column)
            for i in range(1, tiles):
                next_rows = _rows_of_tile(
                    tiles - 1 - i, table_row_ptr, kv_row_start, kv_len, BLOCK_SIZE, PIECE
                )
                _load_tile(k_source, k_ring, k_full, k_empty, count + i, next_rows, column)
                _load_tile(v_source, v_ring, v_full, v_empty, count + i - 1, rows, column)
                rows = next_rows
            count += tiles
            _load_tile(v_source, v_ring, v_full, v_empty, count - 1, rows, column)
            done += 1


@gluon.jit
def _sync(barrier):
    """Wait at a hardware barrier for both warpgroups' 256 threads."""
    gl.inline_asm_elementwise(
        "bar.sync $1, 256; mov.b32 $0, 0;", "=r,r", [barrier], dtype=gl.int32, is_pure=False, pack=1
    )  # fmt: skip


@gluon.jit
def _pass_turn(group):
    """To warpgroup `group`, which waits at its barrier until the other has issued its products."""
    gl.inline_asm_elementwise(
        "bar.arrive $1, 256; mov.b32 $0, 0;", "=r,r", [_FIRST_TURN + group],
        dtype=gl.int32, is_pure=False, pack=1,
    )  # fmt: skip


@gluon.jit
def _softmax(scores, row_max, qk_scale):
    """(weights, their rows' maximum so far)."""
    new_max = gl.maximum(row_max, gl.max(scores, 1) * qk_scale)
    return gl.exp2(scores * qk_scale - gl.expand_dims(new_max, 1)), new_max


@gluon.jit
def _lane_sums(weights):
    """Row sums [64, 4] of what a thread holds of a row; its four lanes are summed at the end."""
    COLUMNS: gl.constexpr = weights.shape[1]
    parts = gl.reshape(weights, [_ROWS, COLUMNS // 8, 4, 2])
    return gl.sum(gl.sum(parts, 3), 1)


@gluon.jit
def _keep_before_wait(sums):
    """`sums`, as they are: all that they are made of stays before the next wait for a product.

    ptxas would move it behind the wait. It keeps the order of what may sleep: for sums above 1e38.
    """
    return gl.inline_asm_elementwise(
        """{
        .reg .pred p; .reg .f32 most;
        max.f32 most, $2, $3; setp.gt.f32 p, most, 0f7E967699; @p nanosleep.u32 1;
        mov.b32 $0, $2; mov.b32 $1, $3;
        }""",
        "=r,=r,r,r", [sums], dtype=gl.float32, is_pure=False, pack=2,
    )  # fmt: skip


@gluon.jit
def _rescale_sums(row_sum, rescale):
    LAYOUT: gl.constexpr = gl.SliceLayout(1, row_sum.type.layout)
    return row_sum * gl.expand_dims(gl.convert_layout(rescale, LAYOUT, assert_trivial=True), 1)


@gluon.jit
def _mask(scores, first_key, first_position, kv_len, CAUSAL: gl.constexpr):
    LAYOUT: gl.constexpr = scores.type.layout
    columns = gl.expand_dims(gl.arange(0, BLOCK_N, gl.SliceLayout(0, LAYOUT)), 0)
    if CAUSAL:
        positions = first_position + gl.arange(0, _ROWS, gl.SliceLayout(1, LAYOUT))
        seen = gl.expand_dims(gl.minimum(positions + 1, kv_len) - first_key, 1)
    else:
        seen = kv_len - first_key
    return gl.where(columns < seen, scores, MASKED)


@gluon.jit
def _clear_rows(tile, num_rows):
    """Zero the rows from `num_rows` on: a neighbour's or unwritten ones, and 0 · NaN is NaN."""
    ROWS: gl.constexpr = 16
    COPY: gl.constexpr = _copy_layout(tile.shape[1])
    for first in gl.static_range(0, BLOCK_N, ROWS):
        if num_rows < first + ROWS:
            part = tile.slice(first, ROWS)
            rows = gl.expand_dims(first + gl.arange(0, ROWS, gl.SliceLayout(1, COPY)), 1)
            values = part.load(COPY)
            part.store(gl.where(rows < num_rows, values, gl.zeros_like(values)))
    fence_async_shared()


@gluon.jit
def _store(out_ptr, result, q_row, queries, head, out_row_stride, GROUP: gl.constexpr):
    """A warpgroup's rows, as far as they are queries'."""
    LAYOUT: gl.constexpr = result.type.layout
    HEAD_DIM: gl.constexpr = result.shape[1]
    rows = GROUP * _ROWS + gl.arange(0, _ROWS, gl.SliceLayout(1, LAYOUT))
    dims = gl.arange(0, HEAD_DIM, gl.SliceLayout(0, LAYOUT))
    places = gl.expand_dims((q_row + rows).to(gl.int64) * out_row_stride, 1)
    places = places + head * HEAD_DIM + gl.expand_dims(dims, 0)
    gl.store(out_ptr + places, result, mask=gl.expand_dims(rows < queries, 1))


@gluon.jit
def _attend(
    state, first, last, q, k_ring, v_ring, k_full, k_empty, v_full, v_empty, count, tiles,
    first_position, kv_len, qk_scale, GROUP: gl.constexpr, MASK: gl.constexpr, CAUSAL: gl.constexpr,
):  # fmt: skip
    """Walk the tiles first:last, of `tiles` from the last keys on.

    state = (acc, weights not yet multiplied with their values, row maximum, row sum).
    """
    acc, weights, row_max, row_sum = state
    SCORES: gl.constexpr = _product_layout(BLOCK_N)
    LEFT: gl.constexpr = gl.DotOperandLayout(0, acc.type.layout, 2)
    ROW: gl.constexpr = gl.SliceLayout(1, acc.type.layout)
    for i in range(first, last):
        k_place = (count + i) % _STAGES
        v_place = (count + i - 1) % _STAGES
        mbarrier.wait(k_full.index(k_place), ((count + i) // _STAGES) & 1)
        _sync(_FIRST_TURN + GROUP)
        scores_token = warpgroup_mma(
            q, k_ring.index(k_place).permute([1, 0]),
            gl.zeros([_ROWS, BLOCK_N], gl.float32, SCORES), use_acc=False, is_async=True,
        )  # fmt: skip
        mbarrier.wait(v_full.index(v_place), ((count + i - 1) // _STAGES) & 1)
        left = gl.convert_layout(weights.to(v_ring.dtype), LEFT, assert_trivial=True)
        acc_token = warpgroup_mma(left, v_ring.index(v_place), acc, is_async=True)
        _pass_turn(1 - GROUP)
        scores = warpgroup_mma_wait(1, deps=[scores_token])
        mbarrier.arrive(k_empty.index(k_place))
        if MASK:
            first_key = (tiles - 1 - i) * BLOCK_N
            scores = _mask(scores, first_key, first_position, kv_len, CAUSAL)
        next_weights, new_max = _softmax(scores, row_max, qk_scale)
        rescale = gl.exp2(row_max - new_max)
        row_sum = _rescale_sums(row_sum, rescale) + _keep_before_wait(_lane_sums(next_weights))
        acc = warpgroup_mma_wait(0, deps=[acc_token])
        mbarrier.arrive(v_empty.index(v_place))
        acc *= gl.expand_dims(gl.convert_layout(rescale, ROW, assert_trivial=True), 1)
        weights = next_weights
        row_max = new_max
    return acc, weights, row_max, row_sum


@gluon.jit
def _consume(arguments, GROUP: gl.constexpr, CAUSAL: gl.constexpr):
    """A warpgroup: rows 64 GROUP to 64 GROUP + 63 of each of the program's tiles of queries."""
    shared, order, out_ptr, cu_seqlens_q_ptr, seq_lens_ptr, qk_scale, out_row_stride = arguments
    q_tiles, k_ring, v_ring, q_full, q_empty, k_full, k_empty, v_full, v_empty = shared
    HEAD_DIM: gl.constexpr = k_ring.shape[2]
    SCORES: gl.constexpr = _product_layout(BLOCK_N)
    OUT: gl.constexpr = _product_layout(HEAD_DIM)
    LEFT: gl.constexpr = gl.DotOperandLayout(0, OUT, 2)
    COPY: gl.constexpr = _copy_layout(HEAD_DIM)
    ELEMENT: gl.constexpr = out_ptr.dtype.element_ty
    count = 0
    done = 0
    if GROUP == 1:
        _pass_turn(0)
    for turn in range(order[3]):
        _, head, first_position, q_row, queries, kv_len, tiles = _work(
            turn, order, cu_seqlens_q_ptr, seq_lens_ptr, CAUSAL
        )
        if queries > 0:
            if tiles == 0:
                nothing = gl.zeros([_ROWS, HEAD_DIM], ELEMENT, COPY)
                _store(out_ptr, nothing, q_row, queries, head, out_row_stride, GROUP)
            else:
                first_position += GROUP * _ROWS
                slot = done % _Q_SLOTS * _GROUPS + GROUP
                q = q_tiles.index(slot)
                place = count % _STAGES
                mbarrier.wait(q_full.index(slot), (done // _Q_SLOTS) & 1)
                mbarrier.wait(k_full.index(place), (count // _STAGES) & 1)
                token = warpgroup_mma(
                    q, k_ring.index(place).permute([1, 0]),
                    gl.zeros([_ROWS, BLOCK_N], gl.float32, SCORES), use_acc=False, is_async=True,
                )  # fmt: skip
                scores = warpgroup_mma_wait(0, deps=[token])
                mbarrier.arrive(k_empty.index(place))
                last_key = (tiles - 1) * BLOCK_N
                if kv_len - last_key < BLOCK_N:
                    if GROUP == 0:
                        mbarrier.wait(v_full.index(place), (count // _STAGES) & 1)
                        _clear_rows(v_ring.index(place), kv_len - last_key)
                    _sync(_MEETING)
                scores = _mask(scores, last_key, first_position, kv_len, CAUSAL)
                row_max = gl.full([_ROWS], float("-inf"), gl.float32, gl.SliceLayout(1, SCORES))
                weights, row_max = _softmax(scores, row_max, qk_scale)
                row_sum = _lane_sums(weights)
                acc = gl.zeros([_ROWS, HEAD_DIM], gl.float32, OUT)
                state = (acc, weights, row_max, row_sum)
                masked = 1
                if CAUSAL:
                    full = gl.maximum(first_position + 1, 0) // BLOCK_N
                    masked = gl.minimum(gl.maximum(tiles - full, 1), tiles)
                    state = _attend(
                        state, 1, masked, q, k_ring, v_ring, k_full, k_empty, v_full, v_empty,
                        count, tiles, first_position, kv_len, qk_scale,
                        GROUP, MASK=True, CAUSAL=CAUSAL,
                    )  # fmt: skip
                state = _attend(
                    state, masked, tiles, q, k_ring, v_ring, k_full, k_empty, v_full, v_empty,
                    count, tiles, first_position, kv_len, qk_scale,
                    GROUP, MASK=False, CAUSAL=CAUSAL,
                )  # fmt: skip
                acc, weights, row_max, row_sum = state
                count += tiles
                place = (count - 1) % _STAGES
                mbarrier.wait(v_full.index(place), ((count - 1) // _STAGES) & 1)
                left = gl.convert_layout(weights.to(ELEMENT), LEFT, assert_trivial=True)
                token = warpgroup_mma(left, v_ring.index(place), acc, is_async=True)
                total = gl.sum(row_sum, 1)
                total = gl.convert_layout(total, gl.SliceLayout(1, OUT), assert_trivial=True)
                acc = warpgroup_mma_wait(0, deps=[token])
                mbarrier.arrive(v_empty.index(place))
                result = (acc * gl.expand_dims(1.0 / total, 1)).to(ELEMENT)
                # By way of the queries' place, for stores of 16 bytes.
                q.store(result)
                result = q.load(COPY)
                fence_async_shared()
                mbarrier.arrive(q_empty.index(slot))
                _store(out_ptr, result, q_row, queries, head, out_row_stride, GROUP)
                done += 1


# Arguments that change from step to step must not each bring a new compilation.
@gluon.jit(
    do_not_specialize=[
        "table_row_stride",
        "num_heads",
        "num_pairs",
        "num_query_blocks",
        "num_turns",
    ],
    do_not_specialize_on_alignment=["cu_seqlens_q_ptr", "seq_lens_ptr", "block_table_ptr"],
)
def attention_prefill_hopper_kernel(
    q_source, k_source, v_source, out_ptr,
    cu_seqlens_q_ptr, seq_lens_ptr, block_table_ptr,
    qk_scale, out_row_stride, table_row_stride,
    num_heads, num_pairs, num_query_blocks, num_turns,
    Q_PER_KV: gl.constexpr, HEAD_DIM: gl.constexpr, BLOCK_SIZE: gl.constexpr, CAUSAL: gl.constexpr,
):  # fmt: skip
    """Grid: any number of programs. BLOCK_SIZE 0 means dense keys and values."""
    BARRIER: gl.constexpr = mbarrier.MBarrierLayout()
    Q_PLACES: gl.constexpr = _Q_SLOTS * _GROUPS
    ELEMENT: gl.constexpr = q_source.dtype
    RING: gl.constexpr = [_STAGES, BLOCK_N, HEAD_DIM]
    q_tiles = gl.allocate_shared_memory(ELEMENT, [Q_PLACES, _ROWS, HEAD_DIM], q_source.layout)
    k_ring = gl.allocate_shared_memory(ELEMENT, RING, k_source.layout)
    v_ring = gl.allocate_shared_memory(ELEMENT, RING, v_source.layout)
    q_full = gl.allocate_shared_memory(gl.int64, [Q_PLACES, 1], BARRIER)
    q_empty = gl.allocate_shared_memory(gl.int64, [Q_PLACES, 1], BARRIER)
    k_full = gl.allocate_shared_memory(gl.int64, [_STAGES, 1], BARRIER)
    k_empty = gl.allocate_shared_memory(gl.int64, [_STAGES, 1], BARRIER)
    v_full = gl.allocate_shared_memory(gl.int64, [_STAGES, 1], BARRIER)
    v_empty = gl.allocate_shared_memory(gl.int64, [_STAGES, 1], BARRIER)
    for i in gl.static_range(Q_PLACES):
        mbarrier.init(q_full.index(i), count=1)
        mbarrier.init(q_empty.index(i), count=1)
    for i in gl.static_range(_STAGES):
        mbarrier.init(k_full.index(i), count=1)
        mbarrier.init(k_empty.index(i), count=_GROUPS)
        mbarrier.init(v_full.index(i), count=1)
        mbarrier.init(v_empty.index(i), count=_GROUPS)
    fence_async_shared()
    shared = (q_tiles, k_ring, v_ring, q_full, q_empty, k_full, k_empty, v_full, v_empty)
    order = (num_heads, num_pairs, num_query_blocks, num_turns)
    consumer = (shared, order, out_ptr, cu_seqlens_q_ptr, seq_lens_ptr, qk_scale, out_row_stride)
    producer = (
        shared, order, q_source, k_source, v_source,
        cu_seqlens_q_ptr, seq_lens_ptr, block_table_ptr, table_row_stride,
    )  # fmt: skip
    gl.warp_specialize(
        [
            (_consume, (consumer, 0, CAUSAL)),
            (_consume, (consumer, 1, CAUSAL)),
            (_produce, (producer, Q_PER_KV, BLOCK_SIZE, CAUSAL)),
        ],
        [4, 1], [240, 24],
    )  # fmt: skip


def launch(
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
    out: Tensor,
) -> Tensor:
    """Run the kernel; the arguments are `op.attention_prefill`'s, for which `runs_on_hopper`."""
    num_heads, head_dim = q.shape[1:]
    num_pairs = seq_lens.shape[0] * num_heads
    num_query_blocks = triton.cdiv(max_q_len, BLOCK_M.value)
    num_items = num_pairs * num_query_blocks
    num_programs = min(num_items, gpu_spec(q.device).num_sms)
    block_size = 0 if block_table is None else k.shape[1]
    piece = min(block_size or BLOCK_N.value, BLOCK_N.value)
    attention_prefill_hopper_kernel[(num_programs,)](
        _descriptor(q, _ROWS.value),
        _descriptor(k, piece),
        _descriptor(v, piece),
        out,
        cu_seqlens_q,
        seq_lens,
        block_table,
        scale * LOG2_E,
        out.stride(0),
        0 if block_table is None else block_table.stride(0),
        num_heads,
        num_pairs,
        num_query_blocks,
        triton.cdiv(num_items, num_programs),
        Q_PER_KV=num_heads // k.shape[-2],
        HEAD_DIM=head_dim,
        BLOCK_SIZE=block_size,
        CAUSAL=causal,
        num_warps=4,
    )
    return out


def _descriptor(x: Tensor, num_rows: int) -> TensorDescriptor:
    """Of a head's `num_rows` rows at a time; a paged cache is one long list of rows."""
    *rows, num_heads, head_dim = x.shape
    block = [num_rows, head_dim]
    layout = gl.NVMMASharedLayout.get_default_for(block, gl.float16)
    shape, strides = [math.prod(rows), num_heads * head_dim], [x.stride(-3), 1]
    return TensorDescriptor(x, shape, strides, block, layout)
