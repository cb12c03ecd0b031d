"""Read `*.safetensors` files, one or many with an index, as lazy views on the mapped files.

Format: https://huggingface.co/docs/safetensors (8 bytes little-endian header length, a JSON
header, then the data). The `safetensors` library has no view on bf16 for numpy, and copies.
"""

from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

from lite_llama.checkpoint.files import (
    find_inside,
    map_file,
    parse_json_object,
    quote,
    read_json_object,
)
from lite_llama.errors import ModelFileError, ModelNotFound, UnsupportedModel
from lite_llama.formats.block_sizes import nbytes
from lite_llama.formats.raw_tensor import RawTensor

INDEX_NAME = "model.safetensors.index.json"
SINGLE_NAME = "model.safetensors"
MAX_HEADER_BYTES = 100_000_000  # the limit of the safetensors library
MAX_DIMS = 8
MAX_DIM = 2**63 - 1
FORMATS = ("F32", "F16", "BF16", "F8_E4M3")


@dataclass(frozen=True)
class _Entry:
    """A header entry that passed its own checks; `start` and `end` count from the data section."""

    name: str
    format: str
    shape: tuple[int, ...]
    start: int
    end: int


def read_safetensors(directory: Path) -> dict[str, RawTensor]:
    """Every tensor of a checkpoint directory.

    As in transformers, `model.safetensors` goes before the index, and without either the only
    `*.safetensors` file is taken. Raises ModelFileError (or a kind of it) naming file and tensor.
    """
    if single := find_inside(directory, SINGLE_NAME):
        return read_shard(single)
    if (index := read_json_object(directory, INDEX_NAME)) is not None:
        return _read_indexed(directory, index)
    names = sorted(path.name for path in directory.glob("*.safetensors"))
    if not names:
        raise ModelNotFound(f"{directory} holds no *.safetensors file; check the path")
    if len(names) > 1:
        raise ModelFileError(
            f"{directory} holds {len(names)} *.safetensors files but no {INDEX_NAME}; download it"
        )
    path = find_inside(directory, names[0])
    if path is None:
        raise ModelNotFound(f"{directory / names[0]} disappeared; download it again")
    return read_shard(path)


def read_shard(path: Path) -> dict[str, RawTensor]:
    """The tensors of one file, as views on its mapping. Raises ModelFileError."""
    mapped = map_file(path)
    header, data_start = _read_header(mapped, path)
    data = np.frombuffer(mapped, dtype=np.uint8, offset=data_start)
    header.pop("__metadata__", None)
    entries = [_check_entry(name, entry, path) for name, entry in header.items()]
    _check_layout(entries, len(data), path)
    return {e.name: RawTensor(e.name, e.format, e.shape, data[e.start : e.end]) for e in entries}


def _read_indexed(directory: Path, index: dict[str, Any]) -> dict[str, RawTensor]:
    index_path = directory / INDEX_NAME
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelFileError(f"{index_path}: no object 'weight_map'; download it again")
    for name, shard in weight_map.items():
        if not isinstance(shard, str) or not shard.endswith(".safetensors"):
            raise ModelFileError(
                f"{index_path}: tensor {quote(name)} is said to be in {quote(str(shard))}, "
                "which is no *.safetensors file; convert the checkpoint to safetensors"
            )
    tensors: dict[str, RawTensor] = {}
    for shard in sorted(set(weight_map.values())):
        path = find_inside(directory, shard)
        if path is None:
            raise ModelNotFound(
                f"{directory / shard} is named in {INDEX_NAME} but missing; download it"
            )
        found = read_shard(path)
        for name in found:
            if weight_map.get(name) != shard:
                raise ModelFileError(
                    f"{path}: {INDEX_NAME} does not place tensor {quote(name)} in this file; "
                    "download both again"
                )
        tensors |= found
    for name, shard in weight_map.items():
        if name not in tensors:
            raise ModelFileError(
                f"{directory / shard}: tensor {quote(name)} of {INDEX_NAME} is not in the file; "
                "download both again"
            )
    return tensors


def _read_header(mapped: Any, path: Path) -> tuple[dict[str, Any], int]:
    size = len(mapped)
    if size < 8:
        raise ModelFileError(f"{path}: {size} bytes are no safetensors file; download it again")
    length = int.from_bytes(mapped[:8], "little")
    limit = min(size - 8, MAX_HEADER_BYTES)
    if length > limit:
        raise ModelFileError(
            f"{path}: the header is said to take {length} bytes, limit {limit}; download it again"
        )
    try:
        text = mapped[8 : 8 + length].decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelFileError(
            f"{path}: the header is not UTF-8 at byte {8 + error.start}; download it again"
        ) from None
    return parse_json_object(text, f"{path}: header"), 8 + length


def _check_entry(name: str, entry: Any, path: Path) -> _Entry:
    where = f"{path}: tensor {quote(name)}"
    if not isinstance(entry, dict) or entry.keys() != {"dtype", "shape", "data_offsets"}:
        raise ModelFileError(f"{where} needs dtype, shape and data_offsets; download it again")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if dtype not in FORMATS:
        raise UnsupportedModel(
            f"{where} has dtype {quote(str(dtype))}; convert it to one of {', '.join(FORMATS)}"
        )
    if not _is_int_list(shape) or len(shape) > MAX_DIMS:
        raise ModelFileError(
            f"{where} has shape {quote(str(shape))}, at most {MAX_DIMS} sizes of 0 to 2^63 - 1 "
            "are expected; download it again"
        )
    if not _is_int_list(offsets) or len(offsets) != 2:
        raise ModelFileError(
            f"{where} has data_offsets {quote(str(offsets))}, a begin and an end are expected; "
            "download it again"
        )
    if offsets[1] - offsets[0] != nbytes(dtype, shape):
        raise ModelFileError(
            f"{where} spans {offsets[1] - offsets[0]} bytes, but {dtype} {shape} takes "
            f"{nbytes(dtype, shape)}; download it again"
        )
    return _Entry(name, dtype, tuple(shape), offsets[0], offsets[1])


def _is_int_list(value: Any) -> bool:
    return isinstance(value, list) and all(
        type(item) is int and 0 <= item <= MAX_DIM for item in value
    )


def _check_layout(entries: list[_Entry], data_bytes: int, path: Path) -> None:
    """The tensors must cover the data exactly: no overlap, no gap, nothing beyond the end."""
    ordered = sorted(entries, key=lambda entry: (entry.start, entry.end))
    for entry in ordered:
        if entry.end > data_bytes:
            raise ModelFileError(
                f"{path}: tensor {quote(entry.name)} ends at byte {entry.end} of {data_bytes} "
                "bytes of data; the file is cut short, download it again"
            )
    for before, after in pairwise(ordered):
        if after.start < before.end:
            raise ModelFileError(
                f"{path}: tensors {quote(before.name)} and {quote(after.name)} overlap at byte "
                f"{after.start}; download it again"
            )
    if sum(entry.end - entry.start for entry in entries) != data_bytes:
        raise ModelFileError(
            f"{path}: the tensors do not cover the {data_bytes} bytes of data; download it again"
        )
