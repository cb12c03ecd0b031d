"""Residual plus a matrix-vector product, for a few tokens."""

from torch import Tensor

from lite_llama.kernel_lib.checks import check_few_rows_of, check_same, check_shape
from lite_llama.kernel_lib.gemv_launch import GemvLaunch
from lite_llama.ops.linear_add import reference


def linear_add(
    x: Tensor,
    weight: Tensor,
    residual: Tensor,
    bias: Tensor | None = None,
    *,
    launch: GemvLaunch | None = None,
) -> Tensor:
    """residual + (x Wᵀ + bias): x [M, in_features], weight [out_features, in_features].

    M is at most 8; residual and result [M, out_features]; all of one dtype, float32
    inside, the product rounded once before the sum. `launch` says how; None: as fits the shape,
    and alone. One with `overlap` >= 0 is a programmatic dependent where the GPU has that: it reads
    weights while the kernel before it still runs, which must not write them.
    """
    check_few_rows_of("x", x, "weight", weight)
    check_shape("residual", residual, (x.shape[0], weight.shape[0]))
    check_same("residual", residual, "x", x)
    if bias is not None:
        check_shape("bias", bias, (weight.shape[0],))
        check_same("bias", bias, "x", x)
    if x.is_cuda:
        from lite_llama.ops.linear_add import kernel

        return kernel.linear_add(x, weight, residual, bias, launch)
    return reference.linear_add(x, weight, residual, bias)
