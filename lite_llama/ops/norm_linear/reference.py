"""norm_linear in plain torch."""

import torch.nn.functional as F
from torch import Tensor


def norm_linear(x: Tensor, norm: Tensor, weight: Tensor, eps: float) -> Tensor:
    normed = F.rms_norm(x.float(), norm.shape, norm.float(), eps).to(x.dtype)
    return F.linear(normed.float(), weight.float()).to(x.dtype).float()
