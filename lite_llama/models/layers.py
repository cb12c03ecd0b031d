"""The parameterised layers a decoder is made of."""

from dataclasses import dataclass, field

from torch import Tensor

from lite_llama import ops
from lite_llama.layouts.packed_weight import PackedWeight
from lite_llama.models.ranks import RankGroup


@dataclass(frozen=True)
class Linear:
    """y = x Wᵀ + b with W [out_features, in_features] in any layout."""

    weight: PackedWeight
    bias: Tensor | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """x [num_tokens, in_features] -> [num_tokens, out_features]."""
        return ops.linear(x, self.weight, self.bias)


@dataclass(frozen=True)
class SummedLinear(Linear):
    """A linear layer whose columns ranks share: each gives a part of the sum.

    `bias` is rank 0's alone, so that it is added once.
    """

    ranks: RankGroup = field(kw_only=True)

    def __call__(self, x: Tensor) -> Tensor:
        """x [num_tokens, this rank's in_features] -> [num_tokens, out_features], on every rank."""
        return self.ranks.sum(ops.linear(x, self.weight, self.bias))


@dataclass(frozen=True)
class GatheredLinear(Linear):
    """A linear layer whose rows ranks share, put together again."""

    ranks: RankGroup = field(kw_only=True)

    def __call__(self, x: Tensor) -> Tensor:
        """x [num_tokens, in_features] -> float32 [num_tokens, out_features of all], everywhere."""
        return self.ranks.gather_columns(ops.linear(x, self.weight, self.bias))


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
