"""RMS norm and a matrix-vector product, for a few tokens: the head."""

from torch import Tensor

from lite_llama.kernel_lib.checks import check_few_rows_of, check_same, check_shape
from lite_llama.kernel_lib.gemv_launch import GemvLaunch
from lite_llama.ops.norm_linear import reference


def norm_linear(
    x: Tensor,
    norm: Tensor,
    weight: Tensor,
    eps: float,
    bias: Tensor | None = None,
    *,
    launch: GemvLaunch | None = None,
) -> Tensor:
    """rms_norm(x, norm, eps) Wᵀ + bias: x [M, in_features], weight [out_features, in_features].

    M is at most 8. Returns float32 [M, out_features], rounded to x's dtype as a separate product
    would be. `launch` as in `linear_add`.
    """
    check_few_rows_of("x", x, "weight", weight)
    check_shape("norm", norm, (x.shape[1],))
    check_same("norm", norm, "x", x)
    if bias is not None:
        check_shape("bias", bias, (weight.shape[0],))
        check_same("bias", bias, "x", x)
    if x.is_cuda:
        from lite_llama.ops.norm_linear import kernel

        return kernel.norm_linear(x, norm, weight, eps, bias, launch)
    return reference.norm_linear(x, norm, weight, eps, bias)
