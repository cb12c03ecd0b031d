"""rms_norm in Triton: rows stay in registers between the sum of squares and the scaling.

One tile a program: unlike layer_norm, walking the rows with the weight in registers was slower
(docs/lab/rows.md).
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lite_llama.kernel_lib.gpu import gpu_spec
from lite_llama.kernel_lib.row_launch import choose_row_launch
from lite_llama.kernel_lib.rows import as_rows


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
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, BLOCK)[None, :]
    mask = (rows < num_rows) & (columns < n)
    # The weight first: it depends on no earlier kernel.
    weight = tl.load(weight_ptr + columns, mask=columns < n, other=0.0)
    x = tl.load(x_ptr + rows * x_row_stride + columns, mask=mask, other=0.0).to(tl.float32)
    if ADD:
        residual_at = residual_ptr + rows * residual_row_stride + columns
        residual = tl.load(residual_at, mask=mask, other=0.0).to(tl.float32)
        total = (x + residual).to(total_ptr.dtype.element_ty)
        tl.store(total_ptr + rows * n + columns, total, mask=mask)
        x = total.to(tl.float32)
    scale = tl.rsqrt(tl.sum(x * x, axis=1, keep_dims=True) / n + eps)
    out = (x * scale * weight.to(tl.float32)).to(out_ptr.dtype.element_ty)
    tl.store(out_ptr + rows * n + columns, out, mask=mask)


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
    launch = choose_row_launch(num_rows, n, x.element_size(), gpu_spec(x.device))
    _rms_norm[(launch.tiles,)](
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
