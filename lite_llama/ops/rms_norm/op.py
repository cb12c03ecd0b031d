"""Root-mean-square normalisation of rows, alone or with the residual add before it."""

import torch
from torch import Tensor

from lite_llama.kernel_lib.checks import (
    check_device,
    check_float,
    check_row_length,
    check_same,
    check_shape,
    check_unit_stride,
)
from lite_llama.ops.rms_norm import reference


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """x / sqrt(mean(x²) + eps) · weight over the last dimension (Zhang & Sennrich 2019).

    x [..., hidden] (fp8 too), weight [hidden], hidden at most 16384; computed in float32, returned
    in x's dtype.
    """
    _check(x, weight)
    if x.numel() == 0:
        return torch.empty_like(x)
    if x.is_cuda:
        from lite_llama.ops.rms_norm import kernel

        return kernel.rms_norm(x, weight, eps)
    return reference.rms_norm(x, weight, eps)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """(rms_norm(x + residual), x + residual): the sum is rounded to x's dtype once, as it is kept.

    x and residual [..., hidden] of one dtype, weight [hidden], hidden at most 16384.
    """
    _check(x, weight)
    check_shape("residual", residual, tuple(x.shape))
    check_same("residual", residual, "x", x)
    if x.numel() == 0:
        return torch.empty_like(x), torch.empty_like(x)
    if x.is_cuda:
        from lite_llama.ops.rms_norm import kernel

        return kernel.add_rms_norm(x, residual, weight, eps)
    return reference.add_rms_norm(x, residual, weight, eps)


def _check(x: Tensor, weight: Tensor) -> None:
    check_float("x", x)
    check_row_length("x", x)
    check_shape("weight", weight, (x.shape[-1],))
    check_unit_stride("weight", weight)
    check_device("weight", weight, "x", x)
