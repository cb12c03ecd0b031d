"""The two parameterised layers a decoder is made of."""

from dataclasses import dataclass

from torch import Tensor

from lite_llama import ops
from lite_llama.layouts.packed_weight import PackedWeight


@dataclass(frozen=True)
class Linear:
    """y = x Wᵀ + b with W [out_features, in_features] in any layout."""

    weight: PackedWeight
    bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """x [num_tokens, in_features] -> [num_tokens, out_features]."""
        return ops.linear(x, self.weight, self.bias)


@dataclass(frozen=True)
class RMSNorm:
    """Root-mean-square normalisation with its weight [hidden] and epsilon."""

    weight: Tensor
    eps: float

    def __call__(self, x: Tensor) -> Tensor:
        """x [..., hidden], normalised."""
        return ops.rms_norm(x, self.weight, self.eps)

    def add(self, x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
        """(normalised x + residual, x + residual), both [..., hidden]."""
        return ops.add_rms_norm(x, residual, self.weight, self.eps)
