"""linear in plain torch: the layout knows how to multiply."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lite_llama.layouts.packed_weight import PackedWeight


def linear(x: Tensor, weight: PackedWeight, bias: Tensor | None) -> Tensor:
    y = weight.matmul(x)
    return y if bias is None else y + bias


def linear_fp8(
    x: Tensor,
    weight: Tensor,
    x_scale: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    out_dtype: torch.dtype,
) -> Tensor:
    y = F.linear(x.float() * x_scale, weight.float() * weight_scale)
    return (y if bias is None else y + bias.float()).to(out_dtype)
