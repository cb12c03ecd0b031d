"""IQ4_NL: 32 values as fp16 scale d and 4-bit index into 16 uneven levels (ggml `block_iq4_nl`)."""

import torch
from torch import Tensor

from lite_llama.formats.bits import bit_fields, half

LEVELS = (-127, -104, -83, -65, -49, -35, -22, -10, 1, 13, 25, 38, 53, 69, 89, 113)


def dequantize(blocks: Tensor) -> Tensor:
    """uint8 [num_blocks, 18] -> fp32 [num_blocks, 32]."""
    levels = torch.tensor(LEVELS, dtype=torch.float32, device=blocks.device)
    return levels[bit_fields(blocks[:, 2:], 4, 16).int()].mul_(half(blocks, 0))
