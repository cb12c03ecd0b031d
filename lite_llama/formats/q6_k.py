"""Q6_K: 256 values in 16 groups; value = d * scale * (q - 32) (ggml `block_q6_K`).

Bytes: 128 of q's bits 0-3, 64 of q's bits 4-5, 16 of int8 scales, fp16 d.
"""

import torch
from torch import Tensor

from lite_llama.formats.bits import bit_fields, half


def dequantize(blocks: Tensor) -> Tensor:
    """uint8 [num_blocks, 210] -> fp32 [num_blocks, 256]."""
    scales = blocks[:, 192:208].view(torch.int8).float().mul_(half(blocks, 208))
    q = bit_fields(blocks[:, 128:192], 2, 32).mul_(16)
    q.bitwise_or_(bit_fields(blocks[:, :128], 4, 64))
    return q.float().sub_(32).view(-1, 16, 16).mul_(scales[:, :, None]).view(-1, 256)
