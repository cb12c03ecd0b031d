"""Read a GGUF file (version 2 or 3, little-endian) as lazy views on the mapped file.

Format: https://github.com/ggml-org/ggml/blob/master/docs/gguf.md. The file is not trusted: every
count, length and offset is compared with what is left of the file before it is used, and only
ModelFileError (or a kind of it) is raised. A vocabulary of 152k tokens and merges opens in about
0.1 s; gguf-py's reader takes seconds.
"""

import struct
from itertools import pairwise
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from lite_llama.checkpoint.files import map_file, quote
from lite_llama.errors import ModelFileError, UnsupportedModel
from lite_llama.formats.block_sizes import BLOCK_SIZES, nbytes
from lite_llama.formats.raw_tensor import RawTensor

MAX_HEADER_BYTES = 128 << 20  # bounds every allocation; the largest known are about 40 MB
MAX_DIMS = 4
MAX_ELEMENTS = 2**63 - 1
MIN_ALIGNMENT = 8
DEFAULT_ALIGNMENT = 32

# enum gguf_metadata_value_type
BOOL, STRING, ARRAY = 7, 8, 9
NUMBERS: dict[int, np.dtype[Any]] = {
    0: np.dtype("<u1"),
    1: np.dtype("<i1"),
    2: np.dtype("<u2"),
    3: np.dtype("<i2"),
    4: np.dtype("<u4"),
    5: np.dtype("<i4"),
    6: np.dtype("<f4"),
    BOOL: np.dtype("?"),
    10: np.dtype("<u8"),
    11: np.dtype("<i8"),
    12: np.dtype("<f8"),
}

# enum ggml_type: the index is the id. Those without a decoder are here to be refused by name.
# fmt: off
TENSOR_TYPES = (
    "F32", "F16", "Q4_0", "Q4_1", "Q4_2", "Q4_3", "Q5_0", "Q5_1", "Q8_0", "Q8_1",
    "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "Q8_K", "IQ2_XXS", "IQ2_XS", "IQ3_XXS", "IQ1_S",
    "IQ4_NL", "IQ3_S", "IQ2_S", "IQ4_XS", "I8", "I16", "I32", "I64", "F64", "IQ1_M",
    "BF16", "Q4_0_4_4", "Q4_0_4_8", "Q4_0_8_8", "TQ1_0", "TQ2_0", "IQ4_NL_4_4", "IQ4_NL_4_8",
    "IQ4_NL_8_8", "MXFP4", "NVFP4", "Q1_0",
)
# fmt: on

U32 = struct.Struct("<I")
U64 = struct.Struct("<Q")


def read_gguf(path: Path) -> tuple[dict[str, Any], dict[str, RawTensor]]:
    """Metadata and tensors of a GGUF file.

    Metadata values are int, float, bool, str, list[str], or a read-only numpy array (a view on
    the file). Shapes are row-major: GGUF's dimensions reversed. Raises ModelFileError naming the
    file and the key or tensor at fault, UnsupportedModel for sound files that this reader cannot
    serve.
    """
    mapped = map_file(path)
    data = np.frombuffer(mapped, dtype=np.uint8)
    header = _Header(memoryview(mapped)[:MAX_HEADER_BYTES], path)
    num_tensors, num_keys = _read_counts(header)
    metadata = _read_metadata(header, num_keys)
    alignment = _read_alignment(header, metadata)
    tensors = _read_tensors(header, num_tensors, alignment, data)
    _check_vocabulary(header, metadata, tensors)
    return metadata, tensors


class _Header:
    """A position in the header; every read is checked against the bytes that are left."""

    def __init__(self, data: memoryview, path: Path) -> None:
        self.data = data
        self.path = path
        self.position = 0

    def error(self, problem: str) -> ModelFileError:
        return ModelFileError(f"{self.path}: {problem}; the file is damaged, download it again")

    def unsupported(self, problem: str) -> UnsupportedModel:
        return UnsupportedModel(f"{self.path}: {problem}")

    @property
    def num_left(self) -> int:
        return len(self.data) - self.position

    def skip(self, num_bytes: int, what: str) -> int:
        """Step over `num_bytes` and return where they start."""
        if num_bytes > self.num_left:
            raise self.error(
                f"{what} needs {num_bytes} bytes at byte {self.position}, {self.num_left} are left"
            )
        start = self.position
        self.position += num_bytes
        return start

    def u32(self, what: str) -> int:
        value: int = U32.unpack_from(self.data, self.skip(4, what))[0]
        return value

    def u64(self, what: str) -> int:
        value: int = U64.unpack_from(self.data, self.skip(8, what))[0]
        return value

    def string(self, what: str) -> str:
        num_bytes = self.u64(f"{what} (length)")
        start = self.skip(num_bytes, what)
        try:
            return str(self.data[start : self.position], "utf-8")
        except UnicodeDecodeError:
            raise self.error(f"{what} at byte {start} is not UTF-8") from None

    def strings(self, count: int, what: str) -> list[str]:
        """`count` strings; one loop of its own, since vocabularies hold hundreds of thousands."""
        data, end, position = self.data, len(self.data), self.position
        if count > self.num_left // U64.size:
            raise self.error(f"{what} has {count} strings, {self.num_left} bytes are left")
        found: list[str] = []
        try:
            for _ in range(count):
                start = position + 8
                position = start + U64.unpack_from(data, position)[0]
                if position > end:
                    raise self.error(f"{what}[{len(found)}] ends at byte {position} of {end}")
                found.append(str(data[start:position], "utf-8"))
        except struct.error:
            raise self.error(f"{what}[{len(found)}] starts past the end, byte {end}") from None
        except UnicodeDecodeError:
            raise self.error(f"{what}[{len(found)}] is not UTF-8") from None
        self.position = position
        return found

    def numbers(self, type_id: int, count: int, what: str) -> npt.NDArray[Any]:
        """`count` numbers or booleans as a view on the file."""
        dtype = NUMBERS[type_id]
        start = self.skip(count * dtype.itemsize, what)
        if type_id == BOOL:
            raw = np.frombuffer(self.data, np.uint8, count, start)
            if (raw > 1).any():
                raise self.error(f"{what} holds booleans other than 0 and 1")
        return np.frombuffer(self.data, dtype, count, start)


def _read_counts(header: _Header) -> tuple[int, int]:
    if bytes(header.data[:4]) != b"GGUF":
        raise header.error(f"starts with {bytes(header.data[:4])!r}, not b'GGUF'")
    header.skip(4, "magic")
    version = header.u32("version")
    if version & 0xFFFF == 0:
        raise header.unsupported("big-endian GGUF is not supported; convert it to little-endian")
    if version not in (2, 3):
        raise header.unsupported(
            f"GGUF version {version} is not supported, 2 and 3 are; convert the model again"
        )
    num_tensors = header.u64("tensor count")
    num_keys = header.u64("key count")
    # The shortest tensor entry has 32 bytes, the shortest key 13.
    if num_tensors * 32 + num_keys * 13 > header.num_left:
        raise header.error(
            f"tensor count {num_tensors} and key count {num_keys} do not fit the "
            f"{header.num_left} bytes left"
        )
    return num_tensors, num_keys


def _read_metadata(header: _Header, num_keys: int) -> dict[str, Any]:
    metadata: dict[str, Any] = {}
    for index in range(num_keys):
        key = header.string(f"name of key {index}")
        what = f"key {quote(key)}"
        if key in metadata:
            raise header.error(f"{what} appears twice")
        metadata[key] = _read_value(header, what)
    return metadata


def _read_value(header: _Header, what: str) -> Any:
    type_id = header.u32(f"{what} (type)")
    if type_id == STRING:
        return header.string(what)
    if type_id != ARRAY:
        _check_value_type(header, type_id, what)
        return header.numbers(type_id, 1, what)[0].item()
    type_id = header.u32(f"{what} (element type)")
    count = header.u64(f"{what} (count)")
    if type_id == ARRAY:
        raise header.unsupported(f"{what} is an array of arrays, which ggml does not read either")
    if type_id == STRING:
        return header.strings(count, what)
    _check_value_type(header, type_id, what)
    return header.numbers(type_id, count, what)


def _check_value_type(header: _Header, type_id: int, what: str) -> None:
    if type_id not in NUMBERS:
        raise header.error(f"{what} has unknown type {type_id}, limit 12")


def _read_alignment(header: _Header, metadata: dict[str, Any]) -> int:
    alignment = metadata.get("general.alignment", DEFAULT_ALIGNMENT)
    is_power_of_two = type(alignment) is int and alignment > 0 and alignment.bit_count() == 1
    if not is_power_of_two or not MIN_ALIGNMENT <= alignment < 2**32:
        raise header.error(
            f"key 'general.alignment' is {quote(str(alignment))}, a power of two from "
            f"{MIN_ALIGNMENT} to 2^31 is expected"
        )
    return int(alignment)


def _read_tensors(
    header: _Header, num_tensors: int, alignment: int, data: npt.NDArray[np.uint8]
) -> dict[str, RawTensor]:
    entries: dict[str, tuple[str, tuple[int, ...], int]] = {}
    for index in range(num_tensors):
        name = header.string(f"name of tensor {index}")
        what = f"tensor {quote(name)}"
        if name in entries:
            raise header.error(f"{what} appears twice")
        shape = _read_shape(header, what)
        format_name = _read_format(header, shape, what)
        offset = header.u64(f"{what} (offset)")
        if offset % alignment:
            raise header.error(f"{what} starts at {offset}, no multiple of alignment {alignment}")
        entries[name] = (format_name, shape, offset)

    data_start = -(-header.position // alignment) * alignment
    data = data[data_start:]
    tensors = {}
    spans = []
    for name, (format_name, shape, offset) in entries.items():
        end = offset + nbytes(format_name, shape)
        if end > len(data):
            raise header.error(
                f"tensor {quote(name)} ends at byte {end} of {len(data)} bytes of data"
            )
        spans.append((offset, end, name))
        tensors[name] = RawTensor(name, format_name, shape, data[offset:end])
    for (_, end, name), (start, _, next_name) in pairwise(sorted(spans)):
        if start < end:
            raise header.error(
                f"tensors {quote(name)} and {quote(next_name)} overlap at byte {start}"
            )
    return tensors


def _read_shape(header: _Header, what: str) -> tuple[int, ...]:
    num_dims = header.u32(f"{what} (number of dimensions)")
    if not 1 <= num_dims <= MAX_DIMS:
        raise header.error(f"{what} has {num_dims} dimensions, 1 to {MAX_DIMS} are expected")
    dims = [header.u64(f"{what} (dimension)") for _ in range(num_dims)]
    if 0 in dims or prod(dims) > MAX_ELEMENTS:
        raise header.error(f"{what} has dimensions {dims}, 1 to 2^63 - 1 elements are expected")
    return tuple(reversed(dims))


def _read_format(header: _Header, shape: tuple[int, ...], what: str) -> str:
    type_id = header.u32(f"{what} (type)")
    if type_id >= len(TENSOR_TYPES):
        raise header.error(f"{what} has unknown type {type_id}, limit {len(TENSOR_TYPES) - 1}")
    name = TENSOR_TYPES[type_id]
    block = BLOCK_SIZES.get(name)
    if block is None:
        supported = ", ".join(n for n in TENSOR_TYPES if n in BLOCK_SIZES)
        raise header.unsupported(
            f"{what} has type {name}, which is not supported; quantize to one of {supported}"
        )
    if shape[-1] % block.values:
        raise header.error(
            f"{what} has rows of {shape[-1]} values, no multiple of {name}'s {block.values}"
        )
    return name


def _check_vocabulary(
    header: _Header, metadata: dict[str, Any], tensors: dict[str, RawTensor]
) -> None:
    """What the tokenizer's keys and the embedding tensors say of each other must agree."""
    tokens = metadata.get("tokenizer.ggml.tokens")
    if tokens is None:
        return
    if not isinstance(tokens, list):
        raise header.error("key 'tokenizer.ggml.tokens' is not an array of strings")
    for key in ("tokenizer.ggml.scores", "tokenizer.ggml.token_type"):
        values = metadata.get(key)
        if values is not None and np.shape(values) != (len(tokens),):
            raise header.error(f"key '{key}' has shape {np.shape(values)} for {len(tokens)} tokens")
    for name in ("token_embd.weight", "output.weight"):
        if name in tensors and tensors[name].shape[0] != len(tokens):
            raise header.error(
                f"tensor '{name}' has {tensors[name].shape[0]} rows for {len(tokens)} tokens"
            )
    for kind in ("bos", "eos", "eot", "eom", "unknown"):
        key = f"tokenizer.ggml.{kind}_token_id"
        value = metadata.get(key)
        if value is not None and (type(value) is not int or not 0 <= value < len(tokens)):
            raise header.error(
                f"key '{key}' is {quote(str(value))}, an id below {len(tokens)} is expected"
            )
