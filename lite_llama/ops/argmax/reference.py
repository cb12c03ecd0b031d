"""argmax in plain torch. On the CPU torch.max returns the lowest index among equals."""

from torch import Tensor


def argmax(x: Tensor) -> tuple[Tensor, Tensor]:
    values, indices = x.max(dim=-1)
    return values, indices
