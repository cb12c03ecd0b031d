"""The gated activation of Llama-like feed-forward blocks."""

import torch
from torch import Tensor

from lite_llama.kernel_lib.checks import check, check_float_up_to_32, check_same, check_shape
from lite_llama.ops.swiglu import reference


def swiglu(gate: Tensor, up: Tensor | None = None) -> Tensor:
    """silu(gate) · up (Shazeer 2020), computed in float32, returned in gate's dtype.

    Either gate and up [..., inter], or one fused buffer [..., 2 · inter] with the gate first.
    """
    check_float_up_to_32("gate", gate)
    check(gate.dim() >= 1, lambda: f"gate has shape {tuple(gate.shape)}, expected [..., n]")
    if up is None:
        check(
            gate.shape[-1] % 2 == 0,
            lambda: (
                f"gate has shape {tuple(gate.shape)}, expected an even last dimension [gate | up]"
            ),
        )
        gate, up = gate.chunk(2, dim=-1)
    check_shape("up", up, tuple(gate.shape))
    check_same("up", up, "gate", gate)
    if gate.numel() == 0:
        return torch.empty_like(gate)
    if gate.is_cuda:
        from lite_llama.ops.swiglu import kernel

        return kernel.swiglu(gate, up)
    return reference.swiglu(gate, up)
