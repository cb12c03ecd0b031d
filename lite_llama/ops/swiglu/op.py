"""The gated activation of Llama-like feed-forward blocks."""

from torch import Tensor

from lite_llama.kernel_lib.checks import check, check_float, check_same, check_shape
from lite_llama.ops.swiglu import reference


def swiglu(gate: Tensor, up: Tensor | None = None) -> Tensor:
    """silu(gate) · up (Shazeer 2020), computed in float32, returned in gate's dtype.

    Either gate and up [..., inter], or one fused buffer [..., 2 · inter] with the gate first.
    """
    check_float("gate", gate)
    if up is None:
        check(
            gate.shape[-1] % 2 == 0,
            f"gate has shape {tuple(gate.shape)}, expected an even last dimension [gate | up]",
        )
        gate, up = gate.chunk(2, dim=-1)
    check_shape("up", up, tuple(gate.shape))
    check_same("up", up, "gate", gate)
    return reference.swiglu(gate, up)
