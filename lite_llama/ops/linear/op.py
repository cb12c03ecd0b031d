"""y = x Wᵀ + b."""

import math

import torch
from torch import Tensor

from lite_llama.errors import OperatorError
from lite_llama.kernel_lib.checks import (
    check,
    check_device,
    check_float_up_to_32,
    check_rank,
    check_shape,
)
from lite_llama.layouts.dense import DenseWeight
from lite_llama.layouts.packed_weight import PackedWeight
from lite_llama.ops.linear import reference

_OUT_DTYPES = (torch.bfloat16, torch.float16, torch.float32)


def linear(x: Tensor, weight: Tensor | PackedWeight, bias: Tensor | None = None) -> Tensor:
    """x [..., in_features] times weight [out_features, in_features] transposed, plus bias.

    Returns [..., out_features] in x's dtype; accumulation is float32.
    """
    packed = _as_packed(weight)
    rows, columns = packed.shape
    check_float_up_to_32("x", x)
    check(
        x.dim() > 0 and x.shape[-1] == columns,
        lambda: (
            f"x has shape {tuple(x.shape)}, expected last dimension {columns} as weight [{rows}, "
            f"{columns}] has columns"
        ),
    )
    if isinstance(packed, DenseWeight):
        check_device("weight", packed.values, "x", x)
    if bias is not None:
        check_shape("bias", bias, (rows,))
        check_device("bias", bias, "x", x)
    flat = x if x.dim() == 2 else x.reshape(math.prod(x.shape[:-1]), columns)
    if flat.shape[0] and rows and columns and x.is_cuda and isinstance(packed, DenseWeight):
        from lite_llama.ops.linear import kernel

        y = kernel.linear(flat, packed.values, bias)
    else:
        y = reference.linear(flat, packed, bias)
    return y if x.dim() == 2 else y.view(*x.shape[:-1], rows)


def linear_fp8(
    x: Tensor,
    weight: Tensor,
    x_scale: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None = None,
    out_dtype: torch.dtype = torch.bfloat16,
) -> Tensor:
    """(x · x_scale) (weight · weight_scale)ᵀ + bias, with x and weight in float8_e4m3fn.

    x [num_rows, in_features], weight [out_features, in_features]; x_scale and weight_scale are
    float32 tensors of one element, as in torch._scaled_mm. Returns [num_rows, out_features] in
    out_dtype (bfloat16, float16 or float32); accumulation is the tensor cores', about float32.
    """
    check_rank("x", x, 2)
    check_rank("weight", weight, 2)
    for name, operand in (("x", x), ("weight", weight)):
        if operand.dtype != torch.float8_e4m3fn:
            raise OperatorError(f"{name} has dtype {operand.dtype}, expected torch.float8_e4m3fn")
    check(
        x.shape[1] == weight.shape[1],
        lambda: f"x has shape {tuple(x.shape)}, expected {weight.shape[1]} columns as weight",
    )
    check(
        out_dtype in _OUT_DTYPES, lambda: f"out_dtype is {out_dtype}, expected one of {_OUT_DTYPES}"
    )
    check_device("weight", weight, "x", x)
    for name, scale in (("x_scale", x_scale), ("weight_scale", weight_scale)):
        if scale.numel() != 1 or scale.dtype != torch.float32:
            raise OperatorError(
                f"{name} is {scale.dtype} {tuple(scale.shape)}, expected one torch.float32 element"
            )
        check_device(name, scale, "x", x)
    if bias is not None:
        check_shape("bias", bias, (weight.shape[0],))
        check_device("bias", bias, "x", x)
    if x.is_cuda and x.numel() and weight.numel():
        from lite_llama.ops.linear import kernel

        if kernel.has_fp8(x.device):
            return kernel.linear_fp8(x, weight, x_scale, weight_scale, bias, out_dtype)
    return reference.linear_fp8(x, weight, x_scale, weight_scale, bias, out_dtype)


def _as_packed(weight: Tensor | PackedWeight) -> PackedWeight:
    if not isinstance(weight, Tensor):
        return weight
    check_rank("weight", weight, 2)
    check_float_up_to_32("weight", weight)
    return DenseWeight(weight)
