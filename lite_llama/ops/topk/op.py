"""The k largest values of each row."""

import torch
from torch import Tensor

from lite_llama.kernel_lib.checks import check, check_float_up_to_32
from lite_llama.ops.topk import reference
from lite_llama.ops.topk.launch import MAX_COLUMNS, MAX_K


def topk(x: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """(values [..., k], indices int64 [..., k]) of x [..., n], largest first.

    1 <= k <= 256, k <= n <= 2²⁰. Among equal values the lower index comes first; NaN counts as the
    largest value.
    """
    check_float_up_to_32("x", x)
    check(
        x.dim() >= 1 and x.shape[-1] <= MAX_COLUMNS,
        lambda: f"x has shape {tuple(x.shape)}, expected [..., at most {MAX_COLUMNS}]",
    )
    limit = min(MAX_K, x.shape[-1])
    check(
        1 <= k <= limit, lambda: f"k is {k}, expected 1..{limit} for rows of {x.shape[-1]} values"
    )
    if x.numel() == 0:
        shape = (*x.shape[:-1], k)
        indices = torch.empty(shape, dtype=torch.int64, device=x.device)
        return torch.empty(shape, dtype=x.dtype, device=x.device), indices
    if x.is_cuda:
        from lite_llama.ops.topk import kernel

        return kernel.topk(x, k)
    return reference.topk(x, k)
