"""Q3_K: 256 values in 16 groups; value = d * (scale - 32) * (q - 4) (ggml `block_q3_K`).

Bytes: 32 of q's bit 2, 64 of q's bits 0-1, 12 of 6-bit scales (8 of bits 0-3, 4 of bits 4-5),
fp16 d.
"""

from torch import Tensor

from lite_llama.formats.bits import bit_fields, half


def dequantize(blocks: Tensor) -> Tensor:
    """uint8 [num_blocks, 110] -> fp32 [num_blocks, 256]."""
    codes = bit_fields(blocks[:, 104:108], 2, 4).mul_(16)
    codes.bitwise_or_(bit_fields(blocks[:, 96:104], 4, 8))
    scales = codes.float().sub_(32).mul_(half(blocks, 108))
    q = bit_fields(blocks[:, :32], 1, 32).mul_(4)
    q.bitwise_or_(bit_fields(blocks[:, 32:96], 2, 32))
    return q.float().sub_(4).view(-1, 16, 16).mul_(scales[:, :, None]).view(-1, 256)
