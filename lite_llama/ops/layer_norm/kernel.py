"""layer_norm in Triton: rows stay in registers, the variance is taken after the mean."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lite_llama.kernel_lib.gpu import gpu_spec
from lite_llama.kernel_lib.row_launch import choose_row_launch
from lite_llama.kernel_lib.rows import as_rows, ceil_div


@triton.jit(do_not_specialize=["num_rows"])  # a step's size must not cost a compilation
def _layer_norm(
    x_ptr,
    weight_ptr,
    bias_ptr,
    out_ptr,
    x_row_stride,
    num_rows,
    n,
    eps,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)[:, None]
    columns = tl.arange(0, BLOCK)[None, :]
    in_row = columns < n
    mask = (rows < num_rows) & in_row
    weight = tl.load(weight_ptr + columns, mask=in_row, other=0.0)
    bias = tl.load(bias_ptr + columns, mask=in_row, other=0.0)
    x = tl.load(x_ptr + rows * x_row_stride + columns, mask=mask, other=0.0).to(tl.float32)
    mean = tl.sum(x, axis=1, keep_dims=True) / n
    centred = tl.where(in_row, x - mean, 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, axis=1, keep_dims=True) / n + eps)
    out = centred * scale * weight.to(tl.float32) + bias.to(tl.float32)
    tl.store(out_ptr + rows * n + columns, out.to(out_ptr.dtype.element_ty), mask=mask)


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """layer_norm of x [..., n] with at least one row."""
    out = torch.empty(x.shape, dtype=x.dtype, device=x.device)
    rows = as_rows(x)
    num_rows, n = rows.shape
    launch = choose_row_launch(num_rows, n, x.element_size(), gpu_spec(x.device))
    _layer_norm[(ceil_div(num_rows, launch.rows),)](
        rows,
        weight,
        bias,
        out,
        rows.stride(0),
        num_rows,
        n,
        eps,
        ROWS=launch.rows,
        BLOCK=launch.block,
        num_warps=launch.num_warps,
    )
    return out
