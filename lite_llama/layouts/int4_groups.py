"""Four-bit groups of 32 for the CPU: torch's tinygemm packing, read straight from GGUF's codes.

A group of 32 codes q in [0, 15] with scale s and offset z stands for s·(q − 8) + z, as
`aten._weight_int4pack_mm_for_cpu` defines it. Q4_0 and Q4_1 map onto it exactly but for the
rounding of scale and offset to bf16. An eight-bit code (Q8_0) is two such planes,
16·high + low, whose scales are powers of two apart: the planes are stacked as rows and added
after the product, so that no third kernel is needed.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

GROUP_SIZE = 32
# The op packs rows in panels of 16 and wants in_features in multiples of 32.
ROW_MULTIPLE = 16


@dataclass(frozen=True)
class Int4Groups:
    """`packed` uint8 [rows, in / 2], `scales_and_offsets` bf16 [in / 32, rows, 2].

    rows = num_planes · out_features; shape = (out_features, in_features).
    """

    packed: Tensor
    scales_and_offsets: Tensor
    shape: tuple[int, int]
    num_planes: int

    @staticmethod
    def from_codes(codes: Tensor, scale: Tensor, offset: Tensor) -> "Int4Groups":
        """Pack codes uint8 [out, in] in 0..15, scale and offset [out, in / 32]: s·(q − 8) + z."""
        return _pack(codes, scale, offset, num_planes=1)

    @staticmethod
    def from_int8(codes: Tensor, scale: Tensor) -> "Int4Groups":
        """Pack codes int8 [out, in] with scale [out, in / 32]: s·q, as 16·high + low."""
        wide = codes.to(torch.int16)
        high = (wide >> 4) + 8
        low = wide & 15
        planes = torch.cat((high, low)).to(torch.uint8)
        scales = torch.cat((16.0 * scale, scale))
        # The op takes 8 off every code: high was stored with 8 added, low gets 8 s back.
        offsets = torch.cat((torch.zeros_like(scale), 8.0 * scale))
        packed = _pack(planes, scales, offsets, num_planes=2)
        rows, columns = codes.shape
        return Int4Groups(packed.packed, packed.scales_and_offsets, (rows, columns), 2)

    @property
    def nbytes(self) -> int:
        """Bytes that one full read of the weight moves."""
        return self.packed.numel() + self.scales_and_offsets.numel() * 2

    def matmul(self, x: Tensor) -> Tensor:
        """x Wᵀ with bf16 operands and float32 accumulation, returned in x's dtype."""
        y: Tensor = torch.ops.aten._weight_int4pack_mm_for_cpu(
            x.bfloat16(), self.packed, GROUP_SIZE, self.scales_and_offsets
        )
        y = (
            y.float() if x.dtype == torch.float32 else y.to(x.dtype)
        )  # float() costs a third of to()
        if self.num_planes == 2:
            rows = self.shape[0]
            return y[:, :rows] + y[:, rows:]
        return y

    def unpack(self) -> Tensor:
        """The values as float32, read back through the product with the identity."""
        return self.matmul(torch.eye(self.shape[1])).T.contiguous()


def _pack(codes: Tensor, scale: Tensor, offset: Tensor, num_planes: int) -> Int4Groups:
    rows, columns = codes.shape
    packed = torch.ops.aten._convert_weight_to_int4pack_for_cpu(codes.to(torch.int32), 1)
    pairs = torch.stack((scale, offset), dim=-1).transpose(0, 1).contiguous().to(torch.bfloat16)
    return Int4Groups(packed, pairs, (rows, columns), num_planes)
