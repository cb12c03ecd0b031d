"""repeat_kv in plain torch."""

from torch import Tensor


def repeat_kv(x: Tensor, q_per_kv: int) -> Tensor:
    return x.repeat_interleave(q_per_kv, dim=1)
