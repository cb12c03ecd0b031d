"""Elementwise sum in Triton: one program a piece of a row."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lite_llama.kernel_lib.gpu import gpu_spec
from lite_llama.kernel_lib.pieces import piece_of_row
from lite_llama.kernel_lib.row_launch import choose_piece_launch
from lite_llama.kernel_lib.rows import as_fewest_rows, ceil_div


@triton.jit
def _add(
    x_ptr, y_ptr, out_ptr, x_row_stride, y_row_stride, n, PIECES: tl.constexpr, BLOCK: tl.constexpr
):
    row, start = piece_of_row(PIECES, BLOCK)
    columns = tl.arange(0, BLOCK)
    mask = columns < n - start
    x = tl.load(x_ptr + row * x_row_stride + start + columns, mask=mask)
    y = tl.load(y_ptr + row * y_row_stride + start + columns, mask=mask)
    tl.store(out_ptr + row * n + start + columns, x + y, mask=mask)


def add(x: Tensor, y: Tensor) -> Tensor:
    """x + y for x and y of one shape, with at least one element."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    x, y = as_fewest_rows(x, y)
    num_rows, n = x.shape
    launch = choose_piece_launch(num_rows, n, x.element_size(), gpu_spec(x.device))
    pieces = ceil_div(n, launch.block)
    _add[(num_rows * pieces,)](
        x,
        y,
        out,
        x.stride(0),
        y.stride(0),
        n,
        PIECES=pieces if num_rows > 1 else 0,
        BLOCK=launch.block,
        num_warps=launch.num_warps,
    )
    return out
