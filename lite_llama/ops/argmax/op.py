"""Largest value of each row and where it stands."""

from torch import Tensor

from lite_llama.kernel_lib.checks import check
from lite_llama.ops.argmax import reference


def argmax(x: Tensor) -> tuple[Tensor, Tensor]:
    """(values [...], indices int64 [...]) over the last dimension; the lowest index wins ties."""
    check(x.dim() >= 1 and x.shape[-1] > 0, f"x has shape {tuple(x.shape)}, expected [..., n > 0]")
    return reference.argmax(x)
