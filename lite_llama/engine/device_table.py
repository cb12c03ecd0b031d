"""The block table of a recorded step: it stays on the device, and only what changes is sent."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lite_llama.engine.upload import upload


class DeviceTable:
    """`values` int32 [num_rows, num_blocks]: the KV blocks of each row's sequence, in order."""

    def __init__(self, num_rows: int, num_blocks: int, device: torch.device) -> None:
        self.values = torch.zeros((num_rows, num_blocks), dtype=torch.int32, device=device)
        # A sequence's list only grows; one that has lost its blocks gets another list.
        self._held: list[tuple[list[int], int]] = [([], 0)] * num_rows

    def write(self, first_row: int, sequences: Sequence[list[int]]) -> None:
        """Let rows from `first_row` on hold the blocks of these sequences."""
        places, blocks = self.changes(first_row, sequences)
        if places:
            self.apply(*upload([places, blocks], torch.int64, self.values.device))

    def changes(
        self, first_row: int, sequences: Sequence[list[int]]
    ) -> tuple[list[int], list[int]]:
        """What `write` would change, places and blocks, for `apply`, which must follow."""
        width = self.values.shape[1]
        places: list[int] = []
        blocks: list[int] = []
        for row, listed in enumerate(sequences, start=first_row):
            held, count = self._held[row]
            known = count if held is listed else 0
            if known < len(listed):
                places += range(row * width + known, row * width + len(listed))
                blocks += listed[known:]
            self._held[row] = (listed, len(listed))
        return places, blocks

    def apply(self, places: Tensor, blocks: Tensor) -> None:
        """Make these changes, int64 [num_changes] each."""
        self.values.view(-1).index_copy_(0, places, blocks.int())
