"""Q2_K: 256 values in 16 groups; value = d * scale * q - dmin * minimum (ggml `block_q2_K`).

Bytes: 16 of (4-bit scale | 4-bit minimum), 64 of 2-bit q, fp16 d, fp16 dmin.
"""

from torch import Tensor

from lite_llama.formats.bits import bit_fields, half


def dequantize(blocks: Tensor) -> Tensor:
    """uint8 [num_blocks, 84] -> fp32 [num_blocks, 256]."""
    scales = (blocks[:, :16] & 15).float().mul_(half(blocks, 80))
    minima = (blocks[:, :16] >> 4).float().mul_(half(blocks, 82))
    q = bit_fields(blocks[:, 16:80], 2, 32).float().view(-1, 16, 16)
    return q.mul_(scales[:, :, None]).sub_(minima[:, :, None]).view(-1, 256)
