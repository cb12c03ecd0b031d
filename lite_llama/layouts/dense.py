"""Dense layout: one value an element, fp32, fp16 or bf16."""

from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor


@dataclass(frozen=True)
class DenseWeight:
    """`values` [out_features, in_features], contiguous."""

    values: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """(out_features, in_features)."""
        rows, columns = self.values.shape
        return rows, columns

    @property
    def nbytes(self) -> int:
        """Bytes that one full read of the weight moves."""
        return self.values.numel() * self.values.element_size()

    def matmul(self, x: Tensor) -> Tensor:
        """x Wᵀ in the weight's dtype, returned in x's."""
        return F.linear(x.to(self.values.dtype), self.values).to(x.dtype)

    def unpack(self) -> Tensor:
        """The values as float32."""
        return self.values.float()
