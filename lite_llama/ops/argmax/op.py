"""Largest value of each row and where it stands."""

import torch
from torch import Tensor

from lite_llama.kernel_lib.argmax_launch import MAX_COLUMNS
from lite_llama.kernel_lib.checks import check, check_float_up_to_32
from lite_llama.ops.argmax import reference


def argmax(x: Tensor) -> tuple[Tensor, Tensor]:
    """(values [...], indices int64 [...]) over the last dimension; the lowest index wins ties.

    NaN counts as the largest value, as in torch. The last dimension holds 1 to 2²⁵ values.
    """
    check_float_up_to_32("x", x)
    check(
        x.dim() >= 1 and 0 < x.shape[-1] <= MAX_COLUMNS,
        lambda: f"x has shape {tuple(x.shape)}, expected [..., 1..{MAX_COLUMNS}]",
    )
    if x.numel() == 0:
        indices = torch.empty(x.shape[:-1], dtype=torch.int64, device=x.device)
        return torch.empty(x.shape[:-1], dtype=x.dtype, device=x.device), indices
    if x.is_cuda:
        from lite_llama.ops.argmax import kernel

        return kernel.argmax(x)
    return reference.argmax(x)
