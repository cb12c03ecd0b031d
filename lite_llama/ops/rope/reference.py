"""rope in plain torch, float32 inside."""

import torch
from torch import Tensor


def rope(q: Tensor, k: Tensor, cos_sin: Tensor, positions: Tensor) -> None:
    cos, sin = cos_sin.index_select(0, positions).view(len(positions), 1, 2, -1).chunk(2, dim=2)
    signed_sin = torch.cat((-sin, sin), dim=2)
    for x in (q, k):
        rotated = x[..., : cos_sin.shape[1]]
        halves = rotated.view(*rotated.shape[:-1], 2, -1)
        # (a, b) · cos + (b, a) · (−sin, sin); float32, as the table is.
        turned = torch.addcmul(halves * cos, halves.flip(-2).float(), signed_sin)
        rotated.copy_(turned.flatten(-2))
