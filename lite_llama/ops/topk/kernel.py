"""topk in Triton, without a sort of the row.

A row is cut into groups of 16 or more neighbours. First kernel: each group's largest value. Second
kernel, one program a row: the k largest values lie in the k groups with the largest maxima, so
these are read again, the k largest of them kept, and each one's rank is the number of kept values
that beat it. Values travel as ordered integers; equal ones are ordered by index, so ties are exact.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lite_llama.kernel_lib.ordered_keys import (
    index_of,
    indexed_key,
    largest_reaching,
    ordered_key,
)
from lite_llama.kernel_lib.rows import as_rows, ceil_div
from lite_llama.ops.topk.launch import choose_launch

# Bits of a float32 key that a narrower float leaves unused: fewer steps of the search.
_UNUSED_BITS = {torch.float32: 0, torch.float16: 13, torch.bfloat16: 16}


@triton.jit
def _group_maxima(
    x_ptr,
    maxima_ptr,
    x_row_stride,
    n,
    splits,
    num_groups,
    UNUSED_BITS: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = (tl.program_id(0) // splits).to(tl.int64)
    group = (tl.program_id(0) % splits) * (BLOCK // GROUP) + tl.arange(0, BLOCK // GROUP)
    index = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    inside = index < n
    x = tl.load(x_ptr + row * x_row_stride + index, mask=inside, other=0.0)
    key = tl.where(inside, ordered_key(x) >> UNUSED_BITS, 0)
    largest = tl.max(key, axis=1)
    tl.store(maxima_ptr + row * num_groups + group, largest, mask=group < num_groups)


@triton.jit
def _keep_largest(key, count, low):
    """Which `count` keys [n] are the largest, among equal ones the first, and the least of them.
    0 is no key; `low` is 0 or known to be reached by as many."""
    high = tl.max(key, axis=0)
    low = tl.where(count == 1, high, low).to(tl.uint32)
    threshold = largest_reaching(key, (key > 0).to(tl.float32), count.to(tl.float32), low, high)
    above = key > threshold
    equal = (key == threshold).to(tl.int32)
    wanted = count - tl.sum(above.to(tl.int32))
    return above | ((equal == 1) & (tl.cumsum(equal, axis=0) <= wanted)), threshold


@triton.jit(do_not_specialize=["k"])
def _top_of_row(
    x_ptr,
    maxima_ptr,
    chosen_ptr,
    values_ptr,
    indices_ptr,
    x_row_stride,
    n,
    num_groups,
    k,
    UNUSED_BITS: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS_BLOCK: tl.constexpr,
    K_BLOCK: tl.constexpr,
    RANK_BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * x_row_stride
    chosen_ptr += row * K_BLOCK
    group = tl.arange(0, GROUPS_BLOCK)
    in_row = group < num_groups
    maxima = tl.load(maxima_ptr + row * num_groups + group, mask=in_row, other=0)
    num_chosen = tl.minimum(k, num_groups)
    kept, floor = _keep_largest(maxima, num_chosen, tl.full([], 0, tl.uint32))
    place = tl.cumsum(kept.to(tl.int32), axis=0) - 1
    tl.store(chosen_ptr + place, group.to(tl.int64), mask=kept)
    tl.debug_barrier()  # what other threads stored is read below
    slot = tl.arange(0, K_BLOCK)
    chosen = tl.load(chosen_ptr + slot, mask=slot < num_chosen, other=num_groups).to(tl.int32)
    tl.debug_barrier()
    index = tl.reshape(chosen[:, None] * GROUP + tl.arange(0, GROUP)[None, :], K_BLOCK * GROUP)
    inside = index < n
    key = ordered_key(tl.load(x_ptr + index, mask=inside, other=0.0)) >> UNUSED_BITS
    key = tl.where(inside, key, 0)
    floor = tl.where(num_chosen == k, floor, 0)  # k groups hold k values that large
    kept, _ = _keep_largest(key, k, floor)
    place = tl.cumsum(kept.to(tl.int32), axis=0) - 1
    tl.store(chosen_ptr + place, indexed_key(key, index), mask=kept)
    tl.debug_barrier()
    own = tl.load(chosen_ptr + slot, mask=slot < k, other=0)
    rank = tl.zeros([K_BLOCK], tl.int32)
    for start in tl.static_range(0, K_BLOCK, RANK_BLOCK):
        other_slot = start + tl.arange(0, RANK_BLOCK)
        other = tl.load(chosen_ptr + other_slot, mask=other_slot < k, other=0)
        rank += tl.sum((other[None, :] > own[:, None]).to(tl.int32), axis=1)
    index = index_of(own)
    value = tl.load(x_ptr + index, mask=slot < k)
    tl.store(values_ptr + row * k + rank, value, mask=slot < k)
    tl.store(indices_ptr + row * k + rank, index, mask=slot < k)


def topk(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(values, indices int64) [..., k] of x [..., n >= k] with at least one row."""
    shape = (*x.shape[:-1], k)
    values = torch.empty(shape, dtype=x.dtype, device=x.device)
    indices = torch.empty(shape, dtype=torch.int64, device=x.device)
    rows = as_rows(x)
    num_rows, n = rows.shape
    launch = choose_launch(n, k)
    unused_bits = _UNUSED_BITS[x.dtype]
    maxima = torch.empty(num_rows, launch.groups, dtype=torch.uint32, device=x.device)
    chosen = torch.empty(num_rows, launch.k_block, dtype=torch.int64, device=x.device)
    splits = ceil_div(n, launch.block)
    _group_maxima[(num_rows * splits,)](
        rows,
        maxima,
        rows.stride(0),
        n,
        splits,
        launch.groups,
        UNUSED_BITS=unused_bits,
        GROUP=launch.group,
        BLOCK=launch.block,
        num_warps=max(1, launch.block // 512),
    )
    # 16 values a thread, of the larger of the two sets that registers hold, and 8 warps: with 16 a
    # sum's barrier costs more than half of the values save, 3 µs of k 256's 31.
    most = max(launch.groups_block, launch.k_block * launch.group)
    _top_of_row[(num_rows,)](
        rows,
        maxima,
        chosen,
        values,
        indices,
        rows.stride(0),
        n,
        launch.groups,
        k,
        UNUSED_BITS=unused_bits,
        GROUP=launch.group,
        GROUPS_BLOCK=launch.groups_block,
        K_BLOCK=launch.k_block,
        RANK_BLOCK=min(launch.k_block, 32),
        num_warps=min(max(most // 512, 1), 8),
    )
    return values, indices
