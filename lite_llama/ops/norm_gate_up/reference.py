"""norm_gate_up in plain torch."""

import torch.nn.functional as F
from torch import Tensor


def norm_gate_up(x: Tensor, norm: Tensor, weight: Tensor, eps: float) -> Tensor:
    normed = F.rms_norm(x.float(), norm.shape, norm.float(), eps).to(x.dtype)
    gate, up = F.linear(normed.float(), weight.float()).to(x.dtype).float().chunk(2, dim=-1)
    return (F.silu(gate) * up).to(x.dtype)
