"""softmax in plain torch, float32 inside."""

import torch
from torch import Tensor


def softmax(x: Tensor) -> Tensor:
    return torch.softmax(x.float(), dim=-1).to(x.dtype)
