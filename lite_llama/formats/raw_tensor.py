"""A tensor as it lies on disk: named, shaped, not decoded."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt


@dataclass(frozen=True)
class RawTensor:
    """One tensor of a checkpoint; nothing is decoded or copied.

    `format` names the encoding on disk, as GGUF spells it ("F32", "BF16", "Q4_1", ...).
    `shape` is row-major as torch has it (GGUF's reversed dimensions are turned around).
    `data` is a read-only 1-D uint8 view on the memory-mapped file.
    """

    name: str
    format: str
    shape: tuple[int, ...]
    data: npt.NDArray[np.uint8]

    @property
    def num_elements(self) -> int:
        """Number of values the tensor holds."""
        count = 1
        for size in self.shape:
            count *= size
        return count
