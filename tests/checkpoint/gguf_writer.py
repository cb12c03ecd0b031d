"""Write GGUF files by hand, so that any field can be given a wrong value."""

import struct
from dataclasses import dataclass

U8, U32, F32, BOOL, STRING, ARRAY, U64 = 0, 4, 6, 7, 8, 9, 10
TYPE_F32, TYPE_F16, TYPE_Q4_0 = 0, 1, 2


@dataclass(frozen=True)
class Entry:
    """One tensor entry as it stands in the header; `dims` in GGUF's order."""

    name: str
    dims: tuple[int, ...]
    offset: int = 0
    type_id: int = TYPE_F32
    num_dims: int | None = None


def u32(value: int) -> bytes:
    return struct.pack("<I", value)


def u64(value: int) -> bytes:
    return struct.pack("<Q", value)


def string(text: str | bytes) -> bytes:
    data = text.encode() if isinstance(text, str) else text
    return u64(len(data)) + data


def key(name: str, type_id: int, value: bytes) -> bytes:
    return string(name) + u32(type_id) + value


def string_key(name: str, value: str) -> bytes:
    return key(name, STRING, string(value))


def u32_key(name: str, value: int) -> bytes:
    return key(name, U32, u32(value))


def array_key(name: str, type_id: int, items: list[bytes]) -> bytes:
    return key(name, ARRAY, u32(type_id) + u64(len(items)) + b"".join(items))


def entry_bytes(entry: Entry) -> bytes:
    num_dims = len(entry.dims) if entry.num_dims is None else entry.num_dims
    dims = b"".join(map(u64, entry.dims))
    return string(entry.name) + u32(num_dims) + dims + u32(entry.type_id) + u64(entry.offset)


def build(
    keys: list[bytes],
    entries: list[Entry],
    data: bytes,
    *,
    version: int = 3,
    num_keys: int | None = None,
    num_entries: int | None = None,
) -> bytes:
    """A whole file; data starts at the next multiple of 32."""
    header = b"GGUF" + u32(version)
    header += u64(len(entries) if num_entries is None else num_entries)
    header += u64(len(keys) if num_keys is None else num_keys)
    header += b"".join(keys) + b"".join(map(entry_bytes, entries))
    return header + bytes(-len(header) % 32) + data


def small_model(
    *extra_keys: bytes, entries: list[Entry] | None = None, data: bytes = bytes(96)
) -> bytes:
    """A sound file: three tokens, an embedding [3, 4] and a norm [4]; or with other parts."""
    keys = [
        string_key("general.architecture", "llama"),
        array_key("tokenizer.ggml.tokens", STRING, [string(t) for t in ("<s>", "</s>", "é")]),
        array_key("tokenizer.ggml.scores", F32, [struct.pack("<f", -s) for s in range(3)]),
        key("tokenizer.ggml.add_bos_token", BOOL, b"\1"),
        *extra_keys,
    ]
    if entries is None:
        entries = [Entry("token_embd.weight", (4, 3)), Entry("output_norm.weight", (4,), 64)]
    return build(keys, entries, data)
