"""Q5_0: 32 values as fp16 scale d and 5-bit q; value = d * (q - 16) (ggml `block_q5_0`)."""

from torch import Tensor

from lite_llama.formats.bits import bit_fields, half


def dequantize(blocks: Tensor) -> Tensor:
    """uint8 [num_blocks, 22] -> fp32 [num_blocks, 32]."""
    q = bit_fields(blocks[:, 2:6], 1, 1).mul_(16)
    q.bitwise_or_(bit_fields(blocks[:, 6:], 4, 16))
    return q.float().sub_(16).mul_(half(blocks, 0))
