"""Q4_1: 32 values as fp16 scale d, fp16 minimum m, 4-bit q; value = d * q + m (`block_q4_1`)."""

from torch import Tensor

from lite_llama.formats.bits import bit_fields, half


def unpack_integers(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scale and minimum with value = q * scale + minimum.

    uint8 [num_blocks, 20] -> q uint8 [num_blocks, 32] in 0..15, scale and minimum
    fp32 [num_blocks].
    """
    return bit_fields(blocks[:, 4:], 4, 16), half(blocks, 0)[:, 0], half(blocks, 2)[:, 0]


def dequantize(blocks: Tensor) -> Tensor:
    """uint8 [num_blocks, 20] -> fp32 [num_blocks, 32]."""
    q = bit_fields(blocks[:, 4:], 4, 16).float()
    return q.mul_(half(blocks, 0)).add_(half(blocks, 2))
