"""Q5_K: 256 values in 8 groups; value = d * scale * q - dmin * minimum (ggml `block_q5_K`).

Bytes: fp16 d, fp16 dmin, 12 of 6-bit scales and minima, 32 of q's bit 4, 128 of q's bits 0-3.
"""

from torch import Tensor

from lite_llama.formats.bits import bit_fields
from lite_llama.formats.q4_k import scales_and_minima


def dequantize(blocks: Tensor) -> Tensor:
    """uint8 [num_blocks, 176] -> fp32 [num_blocks, 256]."""
    scales, minima = scales_and_minima(blocks)
    q = bit_fields(blocks[:, 16:48], 1, 32).mul_(16)
    q.bitwise_or_(bit_fields(blocks[:, 48:], 4, 32))
    return q.float().view(-1, 8, 32).mul_(scales).sub_(minima).view(-1, 256)
