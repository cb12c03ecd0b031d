"""rope in plain torch, float32 inside."""

from torch import Tensor


def rope(q: Tensor, k: Tensor, cos_sin: Tensor, positions: Tensor) -> None:
    cos, sin = cos_sin.index_select(0, positions).unsqueeze(1).chunk(2, dim=-1)
    half = cos.shape[-1]
    for x in (q, k):
        a, b = x[..., :half], x[..., half : 2 * half]
        rotated_a = a * cos - b * sin  # float32, as the table is
        b.copy_(b * cos + a * sin)
        a.copy_(rotated_a)
