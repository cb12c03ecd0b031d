"""Argument checks that operators share: each names argument, value and expectation."""

from torch import Tensor

from lite_llama.errors import OperatorError


def check(condition: bool, message: str) -> None:  # noqa: FBT001 - reads as an assertion
    """Raise OperatorError(message) unless `condition` holds."""
    if not condition:
        raise OperatorError(message)


def check_rank(name: str, x: Tensor, rank: int) -> None:
    """Require that `x` has exactly `rank` dimensions."""
    if x.dim() != rank:
        raise OperatorError(f"{name} has shape {tuple(x.shape)}, expected {rank} dimensions")


def check_shape(name: str, x: Tensor, shape: tuple[int, ...]) -> None:
    """Require an exact shape."""
    if tuple(x.shape) != shape:
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


def check_contiguous_last(name: str, x: Tensor) -> None:
    """Require that the last dimension's elements lie side by side."""
    if x.dim() and x.shape[-1] > 1 and x.stride(-1) != 1:
        raise OperatorError(
            f"{name} has strides {tuple(x.stride())}, expected 1 in the last dimension"
        )
