"""Pieces that the block formats share: half-precision scales and packed bit fields."""

import torch
from torch import Tensor


def half(blocks: Tensor, byte: int) -> Tensor:
    """The fp16 number at `byte` (even) of each block: fp32 [num_blocks, 1].

    `blocks` is uint8 [num_blocks, block_bytes] with an even number of bytes to a block.
    """
    return blocks.view(torch.float16)[:, byte // 2 : byte // 2 + 1].float()


def bit_fields(packed: Tensor, bits: int, run: int) -> Tensor:
    """Unpack unsigned fields of `bits` bits: uint8 [num_blocks, n] -> [num_blocks, n * 8 / bits].

    ggml packs in runs: the lowest fields of `run` consecutive bytes come first, then their next
    fields, and so on, before the next run starts.
    """
    num_blocks, num_bytes = packed.shape
    runs = packed.view(num_blocks, num_bytes // run, run)
    num_fields, mask = 8 // bits, (1 << bits) - 1
    fields = packed.new_empty(num_blocks, num_bytes // run, num_fields, run)
    torch.bitwise_and(runs, mask, out=fields[:, :, 0])
    for index in range(1, num_fields):
        torch.bitwise_right_shift(runs, index * bits, out=fields[:, :, index])
        if index < num_fields - 1:  # the topmost field has no bits above it
            fields[:, :, index].bitwise_and_(mask)
    return fields.view(num_blocks, num_bytes * num_fields)
