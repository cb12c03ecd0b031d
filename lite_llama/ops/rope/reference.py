"""rope in plain torch, float32 inside."""

import torch
from torch import Tensor


def rope(q: Tensor, k: Tensor, cos_sin: Tensor, positions: Tensor) -> None:
    half = cos_sin.shape[1] // 2
    cos, sin = _rows(cos_sin, positions).view(-1, 1, 2, half).unbind(2)
    for x in (_joined(q, k),) if _are_neighbours(q, k) else (q, k):
        halves = x[..., : 2 * half].view(*x.shape[:-1], 2, half)
        a, b = halves.unbind(-2)
        turned = halves * cos.unsqueeze(2)  # float32, as the table is
        first, second = turned.unbind(-2)
        first.addcmul_(b, sin, value=-1)
        second.addcmul_(a, sin)
        halves.copy_(turned)


def _rows(cos_sin: Tensor, positions: Tensor) -> Tensor:
    """The table's row of each position; a view for one, where a copy would take 10 µs a layer."""
    if len(positions) == 1:
        return cos_sin.select(0, int(positions))
    return cos_sin.index_select(0, positions)


def _are_neighbours(q: Tensor, k: Tensor) -> bool:
    """Whether k's heads follow q's in one buffer, as a fused projection leaves them."""
    after_q = q.data_ptr() + q.shape[1] * q.stride(1) * q.element_size()
    return q.stride() == k.stride() and k.data_ptr() == after_q


def _joined(q: Tensor, k: Tensor) -> Tensor:
    """q and k as one tensor: half as many calls, and calls are what one token's time goes to."""
    return torch.as_strided(q, (len(q), q.shape[1] + k.shape[1], q.shape[2]), q.stride())
