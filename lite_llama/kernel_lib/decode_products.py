"""Launches a plain product of the decode chain: one token in Triton, more on tensor cores."""

import triton
from torch import Tensor

from lite_llama.kernel_lib import decode_gemv, decode_mma
from lite_llama.kernel_lib.gemv_launch import GemvLaunch
from lite_llama.kernel_lib.gpu import gpu_spec


def run_single(
    x: Tensor,
    weight: Tensor,
    y: Tensor,
    how: GemvLaunch,
    *,
    norm: Tensor | None = None,
    eps: float = 0.0,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
) -> None:
    """y [M, N] = norm(x) weightᵀ + bias, and + residual: x [M, K], weight [N, K]."""
    num_rows, num_columns = weight.shape
    kernel = decode_mma.single_kernel if how.num_stages else decode_gemv.single_kernel
    kernel[(triton.cdiv(num_rows, how.block_n),)](
        x,
        norm,
        weight,
        bias,
        residual,
        y,
        eps,
        N=num_rows,
        K=num_columns,
        **how.constants(len(x), num_columns, gpu_spec(x.device)),
    )
