"""linear in plain torch: the layout knows how to multiply."""

from torch import Tensor

from lite_llama.layouts.packed_weight import PackedWeight


def linear(x: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
    y = weight.matmul(x)
    return y if bias is None else y + bias
