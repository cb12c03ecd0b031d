"""A weight matrix as it lies in memory, whatever its layout."""

from typing import Protocol

from torch import Tensor


class PackedWeight(Protocol):
    """A [out_features, in_features] matrix in some memory layout."""

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)."""
        ...

    @property
    def nbytes(self) -> int:
        """Bytes that one full read of the weight moves."""
        ...

    def matmul(self, x: Tensor) -> Tensor:
        """x [num_rows, in_features] -> x Wᵀ [num_rows, out_features], on the CPU."""
        ...

    def unpack(self) -> Tensor:
        """The values, float32 [out_features, in_features]."""
        ...
