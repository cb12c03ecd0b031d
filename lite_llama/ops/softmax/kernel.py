"""softmax in Triton: rows in registers, or, where a row is too long, online in two passes."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lite_llama.kernel_lib.gpu import gpu_spec
from lite_llama.kernel_lib.row_launch import MAX_COLUMNS, choose_row_launch
from lite_llama.kernel_lib.rows import as_rows, ceil_div

_LONG_ROW_BLOCK = 4096


@triton.jit(do_not_specialize=["num_rows"])  # a step's size must not cost a compilation
def _softmax(x_ptr, out_ptr, x_row_stride, num_rows, n, ROWS: tl.constexpr, BLOCK: tl.constexpr):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, BLOCK)[None, :]
    mask = (rows < num_rows) & (columns < n)
    x = tl.load(x_ptr + rows * x_row_stride + columns, mask=mask, other=float("-inf"))
    x = x.to(tl.float32)
    weights = tl.exp(x - tl.max(x, axis=1, keep_dims=True))
    out = weights / tl.sum(weights, axis=1, keep_dims=True)
    tl.store(out_ptr + rows * n + columns, out.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit
def _softmax_long(x_ptr, out_ptr, x_row_stride, n, BLOCK: tl.constexpr):
    # Online softmax (Milakov & Gimelshein 2018), a maximum and a sum for each column of the block.
    row = tl.program_id(0).to(tl.int64)
    x_ptr += row * x_row_stride
    out_ptr += row * n
    columns = tl.arange(0, BLOCK)
    largest = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(0, n, BLOCK):
        mask = columns < n - start
        x = tl.load(x_ptr + start + columns, mask=mask, other=float("-inf")).to(tl.float32)
        larger = tl.maximum(largest, x)
        # −inf − −inf is NaN: a column that has seen nothing yet stays at 0.
        seen = larger > float("-inf")
        total = tl.where(seen, total * tl.exp(largest - larger) + tl.exp(x - larger), 0.0)
        largest = larger
    row_max = tl.max(largest, axis=0)
    row_total = tl.sum(total * tl.exp(largest - row_max), axis=0)
    for start in range(0, n, BLOCK):
        mask = columns < n - start
        x = tl.load(x_ptr + start + columns, mask=mask, other=float("-inf")).to(tl.float32)
        out = tl.exp(x - row_max) / row_total
        tl.store(out_ptr + start + columns, out.to(out_ptr.dtype.element_ty), mask=mask)


def softmax(x: Tensor) -> Tensor:
    """softmax of x [..., n] with at least one element."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows = as_rows(x)
    num_rows, n = rows.shape
    if n > MAX_COLUMNS:
        _softmax_long[(num_rows,)](
            rows, out, rows.stride(0), n, BLOCK=_LONG_ROW_BLOCK, num_warps=16
        )
        return out
    launch = choose_row_launch(num_rows, n, x.element_size(), gpu_spec(x.device))
    _softmax[(ceil_div(num_rows, launch.rows),)](
        rows,
        out,
        rows.stride(0),
        num_rows,
        n,
        ROWS=launch.rows,
        BLOCK=launch.block,
        num_warps=launch.num_warps,
    )
    return out
