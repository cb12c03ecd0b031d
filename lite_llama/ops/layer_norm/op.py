"""Layer normalisation of rows."""

import torch
from torch import Tensor

from lite_llama.kernel_lib.checks import (
    check_device,
    check_float_up_to_32,
    check_row_length,
    check_shape,
    check_unit_stride,
)
from lite_llama.ops.layer_norm import reference


def layer_norm(x: Tensor, weight: Tensor, bias: Tensor, eps: float) -> Tensor:
    """(x − mean) / sqrt(variance + eps) · weight + bias over the last dimension (Ba et al. 2016).

    x [..., hidden], weight and bias [hidden], hidden at most 16384; the variance is the biased
    one; computed in float32, returned in x's dtype.
    """
    check_float_up_to_32("x", x)
    check_row_length("x", x)
    for name, vector in (("weight", weight), ("bias", bias)):
        check_shape(name, vector, (x.shape[-1],))
        check_unit_stride(name, vector)
        check_device(name, vector, "x", x)
    if x.numel() == 0:
        return torch.empty_like(x)
    if x.is_cuda:
        from lite_llama.ops.layer_norm import kernel

        return kernel.layer_norm(x, weight, bias, eps)
    return reference.layer_norm(x, weight, bias, eps)
