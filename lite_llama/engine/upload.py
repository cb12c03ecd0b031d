"""Values of the host on the device."""

from collections.abc import Sequence

import torch
from torch import Tensor


def upload(
    values: Sequence[float] | Sequence[Sequence[float]], dtype: torch.dtype, device: torch.device
) -> Tensor:
    """A tensor of `values`. From pinned memory, so that the host does not wait for the device."""
    pinned = torch.tensor(values, dtype=dtype, pin_memory=device.type == "cuda")
    return pinned.to(device, non_blocking=True)
