"""Q4_K: 256 values in 8 groups; value = d * scale * q - dmin * minimum (ggml `block_q4_K`).

Bytes: fp16 d, fp16 dmin, 12 of 6-bit scales and minima, 128 of 4-bit q.
"""

import torch
from torch import Tensor

from lite_llama.formats.bits import bit_fields, half


def scales_and_minima(blocks: Tensor) -> tuple[Tensor, Tensor]:
    """d * scale and dmin * minimum of each group of 32: two fp32 [num_blocks, 8, 1].

    Bytes 4-15 hold 6-bit codes: four scales and four minima whole (bits 0-5 of bytes 4-7 and
    8-11), then four of each split: low nibble of a scale | of a minimum in bytes 12-15, their top
    two bits in the spare bits 6-7 of bytes 4-7 and 8-11. Q5_K shares this layout.
    """
    scale, minimum, low = blocks[:, 4:8], blocks[:, 8:12], blocks[:, 12:16]
    scales = torch.cat([scale & 63, (low & 15) | ((scale >> 2) & 48)], dim=1)
    minima = torch.cat([minimum & 63, (low >> 4) | ((minimum >> 2) & 48)], dim=1)
    return (
        scales.float().mul_(half(blocks, 0))[:, :, None],
        minima.float().mul_(half(blocks, 2))[:, :, None],
    )


def dequantize(blocks: Tensor) -> Tensor:
    """uint8 [num_blocks, 144] -> fp32 [num_blocks, 256]."""
    scales, minima = scales_and_minima(blocks)
    q = bit_fields(blocks[:, 16:], 4, 32).float().view(-1, 8, 32)
    return q.mul_(scales).sub_(minima).view(-1, 256)
