"""Q5_1: 32 values as fp16 scale d, fp16 minimum m, 5-bit q; value = d * q + m (`block_q5_1`)."""

from torch import Tensor

from lite_llama.formats.bits import bit_fields, half


def dequantize(blocks: Tensor) -> Tensor:
    """uint8 [num_blocks, 24] -> fp32 [num_blocks, 32]."""
    q = bit_fields(blocks[:, 4:8], 1, 1).mul_(16)
    q.bitwise_or_(bit_fields(blocks[:, 8:], 4, 16))
    return q.float().mul_(half(blocks, 0)).add_(half(blocks, 2))
