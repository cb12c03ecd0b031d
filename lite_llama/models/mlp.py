"""The gated feed-forward block."""

from dataclasses import dataclass

from torch import Tensor

from lite_llama import ops
from lite_llama.models.layers import Linear


@dataclass(frozen=True)
class GatedMLP:
    """down(silu(gate x) · up x); `gate_up` holds the gate rows, then the up rows."""

    gate_up: Linear
    down: Linear

    def __call__(self, x: Tensor) -> Tensor:
        """x [num_tokens, hidden] -> [num_tokens, hidden]."""
        return self.down(ops.swiglu(self.gate_up(x)))
