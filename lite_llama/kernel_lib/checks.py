"""Argument checks that operators share: each names argument, value and expectation."""

from collections.abc import Callable

import torch
from torch import Tensor

from lite_llama.errors import OperatorError
from lite_llama.kernel_lib.gemv_launch import MAX_TOKENS
from lite_llama.kernel_lib.row_launch import MAX_COLUMNS


def check(condition: bool, message: Callable[[], str]) -> None:  # noqa: FBT001 - an assertion
    """Raise OperatorError(message()) unless `condition` holds: good calls format nothing."""
    if not condition:
        raise OperatorError(message())


def check_rank(name: str, x: Tensor, rank: int) -> None:
    """Require that `x` has exactly `rank` dimensions."""
    if x.dim() != rank:
        raise OperatorError(f"{name} has shape {tuple(x.shape)}, expected {rank} dimensions")


def check_shape(name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    """Require an exact shape."""
    if x.shape != shape:
        raise OperatorError(f"{name} has shape {tuple(x.shape)}, expected {shape}")


def check_float(name: str, x: Tensor) -> None:
    """Require a floating dtype."""
    if not x.dtype.is_floating_point:
        raise OperatorError(f"{name} has dtype {x.dtype}, expected a floating type")


def check_integer(name: str, x: Tensor) -> None:
    """Require an integer dtype."""
    if x.dtype.is_floating_point or x.dtype.is_complex:
        raise OperatorError(f"{name} has dtype {x.dtype}, expected an integer type")


def check_same(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    """Require the dtype and device of another argument."""
    if x.dtype != other.dtype:
        raise OperatorError(f"{name} has dtype {x.dtype}, expected {other.dtype} as {other_name}")
    check_device(name, x, other_name, other)


def check_device(name: str, x: Tensor, other_name: str, other: Tensor) -> None:
    """Require the device of another argument."""
    if x.device != other.device:
        raise OperatorError(f"{name} is on {x.device}, expected {other.device} as {other_name}")


def check_float_up_to_32(name: str, x: Tensor) -> None:
    """Require float32, float16 or bfloat16: kernels compute in float32."""
    if x.dtype not in (torch.float32, torch.float16, torch.bfloat16):
        raise OperatorError(f"{name} has dtype {x.dtype}, expected float32, float16 or bfloat16")


def check_row_length(name: str, x: Tensor) -> None:
    """Require a last dimension whose rows fit a program's registers."""
    if x.dim() == 0 or not 0 < x.shape[-1] <= MAX_COLUMNS:
        raise OperatorError(f"{name} has shape {tuple(x.shape)}, expected [..., 1..{MAX_COLUMNS}]")


def check_unit_stride(name: str, x: Tensor) -> None:
    """Require that neighbours in the last dimension are neighbours in memory."""
    if x.shape[-1] > 1 and x.stride(-1) != 1:
        raise OperatorError(f"{name} has strides {x.stride()}, expected 1 in the last dimension")


def check_cache_write(
    num_tokens: int,
    k_cache: Tensor,
    v_cache: Tensor,
    cos_sin: Tensor,
    positions: Tensor,
    slot_mapping: Tensor,
) -> None:
    """Require two caches of one shape, angles of whole heads, a position and a slot a token."""
    check_rank("k_cache", k_cache, 4)
    check_shape("v_cache", v_cache, tuple(k_cache.shape))
    check_shape("cos_sin", cos_sin, (cos_sin.shape[0], k_cache.shape[3]))
    for name, value in (("positions", positions), ("slot_mapping", slot_mapping)):
        check_integer(name, value)
        check_shape(name, value, (num_tokens,))


def check_few_rows_of(name: str, x: Tensor, weight_name: str, weight: Tensor) -> None:
    """Require 1..MAX_TOKENS rows that a [out_features, in_features] matrix multiplies."""
    check_rank(weight_name, weight, 2)
    check_rank(name, x, 2)
    check(
        1 <= x.shape[0] <= MAX_TOKENS and x.shape[1] == weight.shape[1],
        lambda: f"{name} has shape {tuple(x.shape)}, expected (1..{MAX_TOKENS}, {weight.shape[1]})",
    )
    check_float_up_to_32(name, x)
    check_same(weight_name, weight, name, x)
    for each_name, each in ((name, x), (weight_name, weight)):
        if not each.is_contiguous():
            raise OperatorError(f"{each_name} has strides {each.stride()}, expected contiguous")
