"""Plain floating-point numbers: a block is one value."""

import torch
from torch import Tensor

# By the format's name; a scale that goes with a format is not among its values.
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def dequantize_f32(blocks: Tensor) -> Tensor:
    """uint8 [num_blocks, 4] -> fp32 [num_blocks, 1], a view on the same memory."""
    return blocks.view(torch.float32)


def dequantize_f16(blocks: Tensor) -> Tensor:
    """uint8 [num_blocks, 2] -> fp32 [num_blocks, 1]."""
    return blocks.view(torch.float16).float()


def dequantize_bf16(blocks: Tensor) -> Tensor:
    """uint8 [num_blocks, 2] -> fp32 [num_blocks, 1]."""
    return blocks.view(torch.bfloat16).float()


def dequantize_f8_e4m3(blocks: Tensor) -> Tensor:
    """uint8 [num_blocks, 1] -> fp32 [num_blocks, 1]; scales, where there are any, lie elsewhere."""
    return blocks.view(torch.float8_e4m3fn).float()
