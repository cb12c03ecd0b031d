"""argmax in Triton: rows are cut into pieces, a second small kernel joins them.

Value and index travel as one integer (see ordered_keys), so that ties are exact.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lite_llama.kernel_lib.argmax_launch import choose_argmax
from lite_llama.kernel_lib.ordered_keys import best_of_piece, index_of
from lite_llama.kernel_lib.rows import as_rows


@triton.jit
def _store_result(best, x_ptr, values_ptr, indices_ptr, row, x_row_stride):
    index = index_of(best)
    tl.store(values_ptr + row, tl.load(x_ptr + row * x_row_stride + index))
    tl.store(indices_ptr + row, index)


@triton.jit
def _best_of_piece(
    x_ptr,
    partial_ptr,
    values_ptr,
    indices_ptr,
    x_row_stride,
    n,
    splits,
    WHOLE_ROW: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = (tl.program_id(0) // splits).to(tl.int64)
    best = best_of_piece(x_ptr + row * x_row_stride, tl.program_id(0) % splits * BLOCK, n, BLOCK)
    if WHOLE_ROW:
        _store_result(best, x_ptr, values_ptr, indices_ptr, row, x_row_stride)
    else:
        tl.store(partial_ptr + tl.program_id(0), best)


@triton.jit
def _best_of_row(
    x_ptr, partial_ptr, values_ptr, indices_ptr, x_row_stride, splits, BLOCK: tl.constexpr
):
    row = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, BLOCK)
    best = tl.max(tl.load(partial_ptr + row * splits + split, mask=split < splits, other=0), axis=0)
    _store_result(best, x_ptr, values_ptr, indices_ptr, row, x_row_stride)


def argmax(x: Tensor) -> tuple[Tensor, Tensor]:
    """(values, indices int64) of x [..., n] with at least one row, n at most MAX_COLUMNS."""
    values = torch.empty(x.shape[:-1], dtype=x.dtype, device=x.device)
    indices = torch.empty(x.shape[:-1], dtype=torch.int64, device=x.device)
    rows = as_rows(x)
    num_rows, n = rows.shape
    launch = choose_argmax(n)
    splits = launch.splits
    partial = torch.empty(num_rows * splits, dtype=torch.int64, device=x.device)
    _best_of_piece[(num_rows * splits,)](
        rows,
        partial,
        values,
        indices,
        rows.stride(0),
        n,
        splits,
        WHOLE_ROW=splits == 1,
        BLOCK=launch.block,
        num_warps=launch.num_warps,
    )
    if splits > 1:
        _best_of_row[(num_rows,)](
            rows,
            partial,
            values,
            indices,
            rows.stride(0),
            splits,
            BLOCK=launch.joining_block,
            num_warps=launch.joining_warps,
        )
    return values, indices
