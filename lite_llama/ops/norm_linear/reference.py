"""norm_linear in plain torch."""

import torch.nn.functional as F
from torch import Tensor


def norm_linear(
    x: Tensor, norm: Tensor, weight: Tensor, eps: float, bias: Tensor | None = None
) -> Tensor:
    normed = F.rms_norm(x.float(), norm.shape, norm.float(), eps).to(x.dtype)
    product = F.linear(normed.float(), weight.float(), None if bias is None else bias.float())
    return product.to(x.dtype).float()
