"""topk in Triton, without a sort.

First kernel: every piece of a row finds its K-th largest key by bisection over the key's bits and
writes its K candidates. Second kernel: a candidate's rank is the number of candidates of its row
that beat it; ranks below K are stored. Keys are unique (they hold the index), so ties are exact.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lite_llama.kernel_lib.ordered_keys import index_of, indexed_key, ordered_key
from lite_llama.kernel_lib.rows import as_rows, ceil_div
from lite_llama.ops.topk.launch import choose_launch

# A program ranks 16 candidates against 256 at a time: 32 comparisons a thread for each load.
_RANK_OWN, _RANK_OTHERS = 16, 256


@triton.jit
def _candidates_of_piece(
    x_ptr, candidates_ptr, x_row_stride, n, splits, K: tl.constexpr, BLOCK: tl.constexpr
):
    row = (tl.program_id(0) // splits).to(tl.int64)
    index = (tl.program_id(0) % splits) * BLOCK + tl.arange(0, BLOCK)
    mask = index < n
    key = ordered_key(tl.load(x_ptr + row * x_row_stride + index, mask=mask, other=0.0))
    key = tl.where(mask, key, 0).to(tl.uint32)
    candidates_ptr += tl.program_id(0).to(tl.int64) * K
    if K == 1:
        tl.store(candidates_ptr, tl.max(indexed_key(key, index), axis=0))
    else:
        # The largest threshold that at least K keys reach is the K-th largest key.
        threshold = tl.full([], 0, tl.uint32)
        bit = tl.full([], 0x80000000, tl.uint32)
        for _ in range(32):
            higher = threshold | bit
            threshold = tl.where(tl.sum((key >= higher).to(tl.int32)) >= K, higher, threshold)
            bit = bit >> 1
        above = key > threshold
        equal = (key == threshold).to(tl.int32)
        wanted = K - tl.sum(above.to(tl.int32))
        kept = above | ((equal == 1) & (tl.cumsum(equal, axis=0) <= wanted))
        place = tl.cumsum(kept.to(tl.int32), axis=0) - 1
        tl.store(candidates_ptr + place, indexed_key(key, index), mask=kept)


@triton.jit
def _rank_candidates(
    x_ptr,
    candidates_ptr,
    values_ptr,
    indices_ptr,
    x_row_stride,
    num_candidates,
    K: tl.constexpr,
    OWN: tl.constexpr,
    OTHERS: tl.constexpr,
):
    pieces = tl.cdiv(num_candidates, OWN)
    row = (tl.program_id(0) // pieces).to(tl.int64)
    candidates_ptr += row * num_candidates
    own = (tl.program_id(0) % pieces) * OWN + tl.arange(0, OWN)
    own_key = tl.load(candidates_ptr + own, mask=own < num_candidates, other=0)
    rank = tl.zeros([OWN], tl.int32)
    for start in range(0, num_candidates, OTHERS):
        other = start + tl.arange(0, OTHERS)
        other_key = tl.load(candidates_ptr + other, mask=other < num_candidates, other=0)
        rank += tl.sum((other_key[None, :] > own_key[:, None]).to(tl.int32), axis=1)
    index = index_of(own_key)
    mask = (own < num_candidates) & (rank < K)
    value = tl.load(x_ptr + row * x_row_stride + index, mask=mask)
    tl.store(values_ptr + row * K + rank, value, mask=mask)
    tl.store(indices_ptr + row * K + rank, index, mask=mask)


def topk(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(values, indices int64) [..., k] of x [..., n >= k] with at least one row."""
    shape = (*x.shape[:-1], k)
    values = torch.empty(shape, dtype=x.dtype, device=x.device)
    indices = torch.empty(shape, dtype=torch.int64, device=x.device)
    rows = as_rows(x)
    num_rows, n = rows.shape
    launch = choose_launch(n, k)
    num_candidates = launch.splits * k
    candidates = torch.empty(num_rows * num_candidates, dtype=torch.int64, device=x.device)
    _candidates_of_piece[(num_rows * launch.splits,)](
        rows,
        candidates,
        rows.stride(0),
        n,
        launch.splits,
        K=k,
        BLOCK=launch.block,
        num_warps=launch.num_warps,
    )
    _rank_candidates[(num_rows * ceil_div(num_candidates, _RANK_OWN),)](
        rows,
        candidates,
        values,
        indices,
        rows.stride(0),
        num_candidates,
        K=k,
        OWN=_RANK_OWN,
        OTHERS=_RANK_OTHERS,
        num_warps=4,
    )
    return values, indices
