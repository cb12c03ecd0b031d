"""RMS norm and a matrix-vector product, for one token: the head."""

from torch import Tensor

from lite_llama.kernel_lib.checks import check_row_of, check_same, check_shape
from lite_llama.ops.norm_linear import reference


def norm_linear(
    x: Tensor, norm: Tensor, weight: Tensor, eps: float, *, overlap: bool = False
) -> Tensor:
    """rms_norm(x, norm, eps) Wᵀ: x [1, in_features], weight [out_features, in_features].

    Returns float32 [1, out_features], rounded to x's dtype as a separate product would be.
    `overlap` as in `linear_add`.
    """
    check_row_of("x", x, "weight", weight)
    check_shape("norm", norm, (x.shape[1],))
    check_same("norm", norm, "x", x)
    if x.is_cuda:
        from lite_llama.ops.norm_linear import kernel

        return kernel.norm_linear(x, norm, weight, eps, overlap=overlap)
    return reference.norm_linear(x, norm, weight, eps)
