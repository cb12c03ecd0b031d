"""Residual plus a matrix-vector product, for one token."""

from torch import Tensor

from lite_llama.kernel_lib.checks import check_row_of, check_same, check_shape
from lite_llama.ops.linear_add import reference


def linear_add(
    x: Tensor,
    weight: Tensor,
    residual: Tensor,
    bias: Tensor | None = None,
    *,
    overlap: bool = False,
) -> Tensor:
    """residual + (x Wᵀ + bias): x [1, in_features], weight [out_features, in_features].

    residual and result [1, out_features]; all of one dtype, float32 inside, the product rounded
    once before the sum. `overlap` launches the kernel as a programmatic dependent where the GPU
    has that: it reads weights while the kernel before it still runs, which must not write them.
    """
    check_row_of("x", x, "weight", weight)
    check_shape("residual", residual, (1, weight.shape[0]))
    check_same("residual", residual, "x", x)
    if bias is not None:
        check_shape("bias", bias, (weight.shape[0],))
        check_same("bias", bias, "x", x)
    if x.is_cuda:
        from lite_llama.ops.linear_add import kernel

        return kernel.linear_add(x, weight, residual, bias, overlap=overlap)
    return reference.linear_add(x, weight, residual, bias)
