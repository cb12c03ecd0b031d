"""fused_ffn in plain torch, float32 inside."""

import torch.nn.functional as F
from torch import Tensor


def fused_ffn(x: Tensor, gate_up_weight: Tensor, down_weight: Tensor) -> Tensor:
    gate, up = F.linear(x.float(), gate_up_weight.float()).chunk(2, dim=-1)
    activated = (F.silu(gate) * up).to(x.dtype)
    return F.linear(activated.float(), down_weight.float()).to(x.dtype)
