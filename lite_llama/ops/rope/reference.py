"""rope in plain torch, float32 inside."""

import torch
from torch import Tensor


def rope(q: Tensor, k: Tensor, cos_sin: Tensor, positions: Tensor) -> None:
    cos, sin = cos_sin.index_select(0, positions).unsqueeze(1).chunk(2, dim=-1)
    for x in (q, k):
        a, b = x[..., : cos_sin.shape[1]].float().chunk(2, dim=-1)
        x[..., : cos_sin.shape[1]] = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
