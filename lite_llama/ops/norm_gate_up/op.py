"""RMS norm, gate and up projections and their gated activation, for a few tokens."""

from torch import Tensor

from lite_llama.kernel_lib.checks import check, check_few_rows_of, check_same, check_shape
from lite_llama.kernel_lib.gemv_launch import GemvLaunch
from lite_llama.ops.norm_gate_up import reference


def norm_gate_up(
    x: Tensor,
    norm: Tensor,
    weight: Tensor,
    eps: float,
    *,
    launch: GemvLaunch | None = None,
) -> Tensor:
    """swiglu(rms_norm(x, norm, eps) Wᵀ): x [M, hidden], weight [2 · inter, hidden], gate first.

    M is at most 8. Returns [M, inter] in x's dtype; gate and up are rounded to it before the
    activation, as separate products would be. `launch` as in `linear_add`.
    """
    check_few_rows_of("x", x, "weight", weight)
    check_shape("norm", norm, (x.shape[1],))
    check_same("norm", norm, "x", x)
    check(
        weight.shape[0] % 2 == 0,
        lambda: f"weight has {weight.shape[0]} rows, expected an even number: gate, then up",
    )
    if x.is_cuda:
        from lite_llama.ops.norm_gate_up import kernel

        return kernel.norm_gate_up(x, norm, weight, eps, launch)
    return reference.norm_gate_up(x, norm, weight, eps)
