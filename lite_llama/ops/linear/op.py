"""y = x Wᵀ + b."""

from torch import Tensor

from lite_llama.kernel_lib.checks import check, check_device, check_float, check_shape
from lite_llama.layouts.dense import DenseWeight
from lite_llama.layouts.packed_weight import PackedWeight
from lite_llama.ops.linear import reference


def linear(x: Tensor, weight: Tensor | PackedWeight, bias: Tensor | None = None) -> Tensor:
    """x [..., in_features] times weight [out_features, in_features] transposed, plus bias.

    Returns [..., out_features] in x's dtype; accumulation is float32.
    """
    packed = DenseWeight(weight) if isinstance(weight, Tensor) else weight
    rows, columns = packed.shape
    check_float("x", x)
    check(
        x.shape[-1] == columns,
        f"x has shape {tuple(x.shape)}, expected last dimension {columns} as weight [{rows}, "
        f"{columns}] has columns",
    )
    if bias is not None:
        check_shape("bias", bias, (rows,))
        check_device("bias", bias, "x", x)
    y = reference.linear(x.reshape(-1, columns), packed, bias)
    return y.view(*x.shape[:-1], rows)
