"""topk in plain torch; a stable sort makes ties deterministic."""

from torch import Tensor


def topk(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    values, indices = x.sort(dim=-1, descending=True, stable=True)
    return values[..., :k].contiguous(), indices[..., :k].contiguous()
