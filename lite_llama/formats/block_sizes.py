"""How many values and bytes a block of each on-disk format holds; no torch, readers need just this.

Block layouts: ggml's `ggml-common.h` and `GGML_QUANT_SIZES` of gguf-py.
"""

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

from lite_llama.errors import ModelFileError, UnsupportedModel


class BlockSize(NamedTuple):
    """The unit a format is stored in: `values` numbers in `bytes` bytes."""

    values: int
    bytes: int


BLOCK_SIZES = {
    "F32": BlockSize(1, 4),
    "F16": BlockSize(1, 2),
    "BF16": BlockSize(1, 2),
    "F8_E4M3": BlockSize(1, 1),
    "Q8_0": BlockSize(32, 34),
    "Q4_0": BlockSize(32, 18),
    "Q4_1": BlockSize(32, 20),
    "Q5_0": BlockSize(32, 22),
    "Q5_1": BlockSize(32, 24),
    "Q2_K": BlockSize(256, 84),
    "Q3_K": BlockSize(256, 110),
    "Q4_K": BlockSize(256, 144),
    "Q5_K": BlockSize(256, 176),
    "Q6_K": BlockSize(256, 210),
    "IQ4_NL": BlockSize(32, 18),
}


def nbytes(format_name: str, shape: Sequence[int]) -> int:
    """Bytes that a row-major tensor of `shape` takes on disk.

    Raises UnsupportedModel for a format without decoder and ModelFileError where a row does not
    fill whole blocks.
    """
    size = BLOCK_SIZES.get(format_name)
    if size is None:
        raise UnsupportedModel(
            f"tensor format {format_name} is not supported; convert to one of "
            f"{', '.join(BLOCK_SIZES)}"
        )
    row = shape[-1] if shape else 1
    if row % size.values:
        raise ModelFileError(
            f"a row of {row} values does not fill whole {format_name} blocks of {size.values}; "
            "the file is damaged, download it again"
        )
    return prod(shape) // size.values * size.bytes
