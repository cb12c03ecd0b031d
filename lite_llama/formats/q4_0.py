"""Q4_0: 32 values as fp16 scale d and 4-bit q; value = d * (q - 8) (ggml `block_q4_0`)."""

from torch import Tensor

from lite_llama.formats.bits import bit_fields, half


def unpack_integers(blocks: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, scale and minimum with value = q * scale + minimum, exactly (minimum = -8 * scale).

    uint8 [num_blocks, 18] -> q uint8 [num_blocks, 32] in 0..15, scale and minimum
    fp32 [num_blocks].
    """
    scale = half(blocks, 0)[:, 0]
    return bit_fields(blocks[:, 2:], 4, 16), scale, scale * -8


def dequantize(blocks: Tensor) -> Tensor:
    """uint8 [num_blocks, 18] -> fp32 [num_blocks, 32]."""
    return bit_fields(blocks[:, 2:], 4, 16).float().sub_(8).mul_(half(blocks, 0))
