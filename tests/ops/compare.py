"""How kernels are compared: two accuracy gates, poisoned outputs, untouched memory."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.ops.tolerances import TIMES_TORCH

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
DTYPE_IDS = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16"}


def cases(every_dtype: Sequence[Any], bf16_only: Sequence[Any]) -> list[tuple[Any, torch.dtype]]:
    """(case, dtype) pairs: each is a compilation on a GPU, so few cases run in every dtype."""
    pairs = [(case, dtype) for case in every_dtype for dtype in DTYPES]
    return pairs + [(case, torch.bfloat16) for case in bf16_only]


def nmse(got: Tensor, want: Tensor) -> float:
    """Sum of squared errors over the sum of squares of `want`, in float64."""
    assert got.shape == want.shape, f"shape {tuple(got.shape)}, expected {tuple(want.shape)}"
    error = (got.double() - want.double()).square().sum().item()
    power = want.double().square().sum().item()
    return error / power if power else error


def assert_close_to_reference(
    got: Tensor, want: Tensor, limits: dict[torch.dtype, float], torch_result: Tensor | None = None
) -> None:
    """`got` against `want` (float64, of the same rounded inputs), under both gates.

    First gate: `limits` for got's dtype. Second: at most TIMES_TORCH times the error of
    `torch_result`, the plain torch operator's in the same dtype.
    """
    assert not got.double().isnan().logical_and(~want.double().isnan()).any(), "NaN in the output"
    error = nmse(got, want)
    limit = limits[got.dtype]
    assert error <= limit, f"NMSE {error:.3g}, limit {limit:.3g}"
    if torch_result is not None:
        # Squared errors: the factor is squared too. Below 6e-13 both are at float32's rounding:
        # 2880 products added one after the other have 4.5e-13; a CPU's torch adds in another order.
        allowed = max(TIMES_TORCH**2 * nmse(torch_result, want), 6e-13)
        assert error <= allowed, f"NMSE {error:.3g}, 1.5 x torch's error is {allowed:.3g}"


def poison_new_outputs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let torch.empty and empty_like hand out NaN (or the largest integer), not stale memory."""
    real_empty, real_empty_like = torch.empty, torch.empty_like

    def poisoned(create: Callable[..., Tensor]) -> Callable[..., Tensor]:
        def make(*args: object, **kwargs: object) -> Tensor:
            return poison(create(*args, **kwargs))

        return make

    monkeypatch.setattr(torch, "empty", poisoned(real_empty))
    monkeypatch.setattr(torch, "empty_like", poisoned(real_empty_like))


def poison(x: Tensor) -> Tensor:
    """Fill with NaN, or with the largest value where the dtype has no NaN."""
    if x.dtype.is_floating_point:
        return x.copy_(torch.full((), float("nan"), device=x.device).to(x.dtype))
    if x.dtype == torch.bool:
        return x.fill_(1)
    return x.fill_(torch.iinfo(x.dtype).max)


def same_bits(a: Tensor, b: Tensor) -> bool:
    """Equality of memory, so that NaN equals itself and −0 differs from 0."""
    flat_a, flat_b = a.reshape(-1), b.reshape(-1)
    return a.shape == b.shape and torch.equal(flat_a.view(torch.uint8), flat_b.view(torch.uint8))


def non_contiguous(x: Tensor) -> Tensor:
    """The same values with a row stride larger than the row (and NaN in between)."""
    wide = torch.empty(*x.shape[:-1], x.shape[-1] + 16, dtype=x.dtype, device=x.device)
    poison(wide)
    view = wide[..., : x.shape[-1]]
    view.copy_(x)
    return view


def random(*shape: int, dtype: torch.dtype, device: torch.device, scale: float = 1.0) -> Tensor:
    """Normal values, drawn in float32 on the CPU so that every device sees the same.

    Large ones are drawn on the device: the CPU takes seconds for a language model's head.
    """
    large = math.prod(shape) > 2**22
    values = torch.randn(*shape, device=device if large else "cpu")
    return (values * scale).to(device=device, dtype=dtype)
