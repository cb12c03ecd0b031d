"""Rows left in their disk format, decoded when read: an embedding table costs no memory."""

from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class EncodedRows:
    """`rows` uint8 [num_rows, bytes_per_row] (a view on the file); `decode` maps blocks to values.

    `decode`: uint8 [num_blocks, block_bytes] -> float32 [num_blocks, block_size].
    """

    rows: Tensor
    block_bytes: int
    num_columns: int
    decode: Callable[[Tensor], Tensor]

    @property
    def shape(self) -> tuple[int, int]:
        """(num_rows, num_columns)."""
        return self.rows.shape[0], self.num_columns

    @property
    def nbytes(self) -> int:
        """Bytes of the whole table."""
        return self.rows.numel()

    def gather(self, indices: Tensor) -> Tensor:
        """Rows `indices` [n] -> float32 [n, num_columns]."""
        picked = self.rows.index_select(0, indices)
        return self.decode(picked.view(-1, self.block_bytes)).view(len(indices), self.num_columns)
