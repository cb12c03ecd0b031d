"""rms_norm in Triton: rows stay in registers between the sum of squares and the scaling.

A program walks rows a grid apart, with the weight in registers and the next rows on their way.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lite_llama.kernel_lib.gpu import gpu_spec
from lite_llama.kernel_lib.row_launch import choose_row_launch
from lite_llama.kernel_lib.rows import as_rows

# This row, the next and the weight, as ptxas counts (tests/compile).
_REGISTERS_PER_VALUE = 3.0


@triton.jit(do_not_specialize=["num_rows"])  # a step's size must not cost a compilation
def _rms_norm(
    x_ptr,
    residual_ptr,
    weight_ptr,
    out_ptr,
    total_ptr,
    x_row_stride,
    residual_row_stride,
    num_rows,
    n,
    eps,
    ADD: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    columns = tl.arange(0, BLOCK)[None, :]
    in_row = columns < n
    # The weight first: it depends on no earlier kernel.
    weight = tl.load(weight_ptr + columns, mask=in_row, other=0.0)
    first_row = tl.program_id(0) * ROWS
    step = tl.num_programs(0) * ROWS
    rows = first_row.to(tl.int64) + tl.arange(0, ROWS)[:, None]
    mask = (rows < num_rows) & in_row
    x = tl.load(x_ptr + rows * x_row_stride + columns, mask=mask, other=0.0)
    residual = x
    if ADD:
        residual_at = residual_ptr + rows * residual_row_stride + columns
        residual = tl.load(residual_at, mask=mask, other=0.0)
    for _ in range(first_row, num_rows, step):
        # The next rows are on their way while these are summed.
        next_rows = rows + step
        next_mask = (next_rows < num_rows) & in_row
        next_x = tl.load(x_ptr + next_rows * x_row_stride + columns, mask=next_mask, other=0.0)
        next_residual = next_x
        if ADD:
            residual_at = residual_ptr + next_rows * residual_row_stride + columns
            next_residual = tl.load(residual_at, mask=next_mask, other=0.0)
        wide = x.to(tl.float32)
        if ADD:
            total = (wide + residual.to(tl.float32)).to(total_ptr.dtype.element_ty)
            tl.store(total_ptr + rows * n + columns, total, mask=mask)
            wide = total.to(tl.float32)
        scale = tl.rsqrt(tl.sum(wide * wide, axis=1, keep_dims=True) / n + eps)
        out = (wide * scale * weight.to(tl.float32)).to(out_ptr.dtype.element_ty)
        tl.store(out_ptr + rows * n + columns, out, mask=mask)
        rows = next_rows
        mask = next_mask
        x = next_x
        residual = next_residual


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """rms_norm of x [..., n] with at least one row."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows = as_rows(x)
    _launch(rows, rows, weight, eps, out, out, add=False)
    return out


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(rms_norm(x + residual), x + residual) with at least one row."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    total = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    _launch(as_rows(x), as_rows(residual), weight, eps, out, total, add=True)
    return out, total


def _launch(
    x: Tensor,
    residual: Tensor,
    weight: Tensor,
    eps: float,
    out: Tensor,
    total: Tensor,
    *,
    add: bool,
) -> None:
    num_rows, n = x.shape
    gpu = gpu_spec(x.device)
    launch = choose_row_launch(num_rows, n, x.element_size(), _REGISTERS_PER_VALUE, gpu)
    _rms_norm[(launch.programs,)](
        x,
        residual,
        weight,
        out,
        total,
        x.stride(0),
        residual.stride(0),
        num_rows,
        n,
        eps,
        ADD=add,
        ROWS=launch.rows,
        BLOCK=launch.block,
        num_warps=launch.num_warps,
    )
