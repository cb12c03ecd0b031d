"""Q8_0: 32 values as fp16 scale d and int8 q; value = d * q (ggml `block_q8_0`)."""

import torch
from torch import Tensor

from lite_llama.formats.bits import half


def unpack_integers(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scale and minimum with value = q * scale + minimum; the minimum is zero here.

    uint8 [num_blocks, 34] -> q int8 [num_blocks, 32] (a view), scale and minimum fp32 [num_blocks].
    """
    scale = half(blocks, 0)[:, 0]
    return blocks[:, 2:].view(torch.int8), scale, torch.zeros_like(scale)


def dequantize(blocks: Tensor) -> Tensor:
    """uint8 [num_blocks, 34] -> fp32 [num_blocks, 32]."""
    return blocks[:, 2:].view(torch.int8).float().mul_(half(blocks, 0))
