"""softmax in Triton: rows in registers, or, where a row is too long, cut into pieces."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lite_llama.kernel_lib.gpu import gpu_spec
from lite_llama.kernel_lib.row_launch import MAX_COLUMNS, choose_row_launch, programs_at_once
from lite_llama.kernel_lib.rows import as_rows, ceil_div, next_power_of_2

# Pieces of long rows: 8 warps with 16 values a thread. A program holds a row's pieces in registers.
_PIECE_BLOCK, _MAX_PIECES = 4096, 1024

# From here on few programs fit an SM, and walking with the next row on its way pays.
_WALKED_BYTES = 32 * 1024
# This row and the next, as ptxas counts (tests/compile).
_REGISTERS_PER_VALUE = 1.5


@triton.jit
def _store_softmax(x, out_ptr, rows, columns, n, mask):
    x = x.to(tl.float32)
    weights = tl.exp(x - tl.max(x, axis=1, keep_dims=True))
    out = weights * (1.0 / tl.sum(weights, axis=1, keep_dims=True))
    tl.store(out_ptr + rows * n + columns, out.to(out_ptr.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["num_rows"])  # a step's size must not cost a compilation
def _softmax(
    x_ptr,
    out_ptr,
    x_row_stride,
    num_rows,
    n,
    WALKS: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    columns = tl.arange(0, BLOCK)[None, :]
    in_row = columns < n
    first_row = tl.program_id(0) * ROWS
    rows = first_row.to(tl.int64) + tl.arange(0, ROWS)[:, None]
    mask = (rows < num_rows) & in_row
    x = tl.load(x_ptr + rows * x_row_stride + columns, mask=mask, other=float("-inf"))
    if WALKS:
        step = tl.num_programs(0) * ROWS
        for _ in range(first_row, num_rows, step):
            # The next rows are on their way while these are summed.
            next_rows = rows + step
            next_mask = (next_rows < num_rows) & in_row
            next_at = x_ptr + next_rows * x_row_stride + columns
            next_x = tl.load(next_at, mask=next_mask, other=float("-inf"))
            _store_softmax(x, out_ptr, rows, columns, n, mask)
            rows = next_rows
            mask = next_mask
            x = next_x
    else:
        _store_softmax(x, out_ptr, rows, columns, n, mask)


@triton.jit
def _sum_of_piece(x_ptr, partial_ptr, x_row_stride, n, pieces, length, BLOCK: tl.constexpr):
    # Online softmax (Milakov & Gimelshein 2018), a maximum and a sum for each column of the block.
    row = (tl.program_id(0) // pieces).to(tl.int64)
    begin = (tl.program_id(0) % pieces) * length
    end = tl.minimum(begin + length, n)
    x_ptr += row * x_row_stride
    largest = tl.full([BLOCK], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK], tl.float32)
    for start in range(begin, end, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + columns, mask=columns < end, other=float("-inf")).to(tl.float32)
        larger = tl.maximum(largest, x)
        # −inf − −inf is NaN: a column that has seen nothing yet stays at 0.
        seen = larger > float("-inf")
        total = tl.where(seen, total * tl.exp(largest - larger) + tl.exp(x - larger), 0.0)
        largest = larger
    piece_largest = tl.max(largest, axis=0)
    shrink = tl.where(largest > float("-inf"), tl.exp(largest - piece_largest), 0.0)
    tl.store(partial_ptr + tl.program_id(0) * 2, piece_largest)
    tl.store(partial_ptr + tl.program_id(0) * 2 + 1, tl.sum(total * shrink, axis=0))


@triton.jit
def _write_piece(
    x_ptr,
    partial_ptr,
    out_ptr,
    x_row_stride,
    n,
    pieces,
    length,
    PIECES_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = (tl.program_id(0) // pieces).to(tl.int64)
    begin = (tl.program_id(0) % pieces) * length
    end = tl.minimum(begin + length, n)
    x_ptr += row * x_row_stride
    out_ptr += row * n
    piece = tl.arange(0, PIECES_BLOCK)
    at = partial_ptr + (row * pieces + piece) * 2
    largest = tl.load(at, mask=piece < pieces, other=float("-inf"))
    totals = tl.load(at + 1, mask=piece < pieces, other=0.0)
    row_largest = tl.max(largest, axis=0)
    scale = 1.0 / tl.sum(totals * tl.exp(largest - row_largest), axis=0)
    for start in range(begin, end, BLOCK):
        columns = start + tl.arange(0, BLOCK)
        x = tl.load(x_ptr + columns, mask=columns < end, other=float("-inf")).to(tl.float32)
        out = tl.exp(x - row_largest) * scale
        tl.store(out_ptr + columns, out.to(out_ptr.dtype.element_ty), mask=columns < end)


def softmax(x: Tensor) -> Tensor:
    """softmax of x [..., n] with at least one element."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows = as_rows(x)
    num_rows, n = rows.shape
    if n > MAX_COLUMNS:
        _softmax_in_pieces(rows, out)
        return out
    gpu = gpu_spec(x.device)
    launch = choose_row_launch(num_rows, n, x.element_size(), gpu)
    walks = launch.rows * launch.block * x.element_size() >= _WALKED_BYTES
    programs = launch.tiles
    if walks:
        programs = programs_at_once(launch, x.element_size(), _REGISTERS_PER_VALUE, gpu)
    _softmax[(programs,)](
        rows,
        out,
        rows.stride(0),
        num_rows,
        n,
        WALKS=walks,
        ROWS=launch.rows,
        BLOCK=launch.block,
        num_warps=launch.num_warps,
    )
    return out


def _softmax_in_pieces(rows: Tensor, out: Tensor) -> None:
    num_rows, n = rows.shape
    length = _PIECE_BLOCK * ceil_div(n, _PIECE_BLOCK * _MAX_PIECES)
    pieces = ceil_div(n, length)
    partial = torch.empty(num_rows, pieces, 2, device=rows.device)
    sizes = (rows.stride(0), n, pieces, length)
    grid = (num_rows * pieces,)
    _sum_of_piece[grid](rows, partial, *sizes, BLOCK=_PIECE_BLOCK, num_warps=8)
    _write_piece[grid](
        rows,
        partial,
        out,
        *sizes,
        PIECES_BLOCK=next_power_of_2(pieces),
        BLOCK=_PIECE_BLOCK,
        num_warps=8,
    )
