"""Softmax of rows."""

import torch
from torch import Tensor

from lite_llama.kernel_lib.checks import check, check_float_up_to_32
from lite_llama.ops.softmax import reference


def softmax(x: Tensor) -> Tensor:
    """exp(x) / sum(exp(x)) over the last dimension of x [..., n], of any length.

    Computed in float32, returned in x's dtype. A row of −inf alone becomes NaN, as in torch.
    """
    check_float_up_to_32("x", x)
    check(x.dim() >= 1, lambda: f"x has shape {tuple(x.shape)}, expected [..., n]")
    if x.numel() == 0:
        return torch.empty_like(x)
    if x.is_cuda:
        from lite_llama.ops.softmax import kernel

        return kernel.softmax(x)
    return reference.softmax(x)
