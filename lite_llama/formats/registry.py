"""Every on-disk format this package decodes, by the name GGUF gives it."""

import warnings
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from lite_llama.errors import ModelFileError
from lite_llama.formats import (
    floats,
    iq4_nl,
    q2_k,
    q3_k,
    q4_0,
    q4_1,
    q4_k,
    q5_0,
    q5_1,
    q5_k,
    q6_k,
    q8_0,
)
from lite_llama.formats.block_sizes import BLOCK_SIZES, nbytes
from lite_llama.formats.raw_tensor import RawTensor

__all__ = ["FORMATS", "Format", "dequantize", "nbytes", "raw_blocks"]

# Intermediates of a chunk (2 MiB in fp32) stay in cache: 135M values of Q4_1 took 0.20 s, against
# 0.84 s in chunks 16 times as large (2 cores).
CHUNK_VALUES = 1 << 19


@dataclass(frozen=True)
class Format:
    """One on-disk format: `block_size` values in `block_bytes` bytes, and how to decode them.

    `dequantize` maps uint8 [num_blocks, block_bytes] to fp32 [num_blocks, block_size], on the
    device of its input; it may return a view on it.
    """

    name: str
    block_size: int
    block_bytes: int
    dequantize: Callable[[Tensor], Tensor]


_DECODERS: dict[str, Callable[[Tensor], Tensor]] = {
    "F32": floats.dequantize_f32,
    "F16": floats.dequantize_f16,
    "BF16": floats.dequantize_bf16,
    "F8_E4M3": floats.dequantize_f8_e4m3,
    "Q8_0": q8_0.dequantize,
    "Q4_0": q4_0.dequantize,
    "Q4_1": q4_1.dequantize,
    "Q5_0": q5_0.dequantize,
    "Q5_1": q5_1.dequantize,
    "Q2_K": q2_k.dequantize,
    "Q3_K": q3_k.dequantize,
    "Q4_K": q4_k.dequantize,
    "Q5_K": q5_k.dequantize,
    "Q6_K": q6_k.dequantize,
    "IQ4_NL": iq4_nl.dequantize,
}

FORMATS: dict[str, Format] = {
    name: Format(name, size.values, size.bytes, _DECODERS[name])
    for name, size in BLOCK_SIZES.items()
}


def raw_blocks(raw: RawTensor) -> Tensor:
    """The tensor's bytes as uint8 [num_blocks, block_bytes], without a copy: only read from it.

    Raises UnsupportedModel for an unknown format, ModelFileError where the bytes do not fit the
    shape.
    """
    expected = nbytes(raw.format, raw.shape)
    if raw.data.size != expected:
        raise ModelFileError(
            f"tensor {raw.name!r} has {raw.data.size} bytes, but {raw.format} {list(raw.shape)} "
            f"takes {expected}; the file is damaged, download it again"
        )
    with warnings.catch_warnings():
        # torch has no read-only tensors and says so for every view on a read-only mapping.
        warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
        data = torch.from_numpy(raw.data)
    return data.view(-1, FORMATS[raw.format].block_bytes)


def stored_values(raw: RawTensor) -> Tensor | None:
    """The values of plain floating-point numbers as they lie in the file, in `raw.shape`.

    No copy: only read from it. None for other formats. Errors as `raw_blocks`.
    """
    dtype = floats.DTYPES.get(raw.format)
    return None if dtype is None else raw_blocks(raw).view(dtype).view(raw.shape)


def dequantize(raw: RawTensor) -> Tensor:
    """Decode a whole tensor: new fp32 CPU memory in `raw.shape`. Errors as `raw_blocks`."""
    blocks = raw_blocks(raw)
    fmt = FORMATS[raw.format]
    values = torch.empty(len(blocks), fmt.block_size, dtype=torch.float32)
    step = CHUNK_VALUES // fmt.block_size
    for start in range(0, len(blocks), step):
        values[start : start + step] = fmt.dequantize(blocks[start : start + step])
    return values.view(raw.shape)
