"""Opening the files of a checkpoint: only regular files, only inside its directory, bounded."""

import json
import mmap
from pathlib import Path
from typing import Any

from lite_llama.errors import ModelFileError, ModelNotFound

MAX_TEXT_BYTES = 64 << 20  # the largest tokenizer.json in circulation is about 34 MB


def quote(name: str) -> str:
    """A name from a file, fit for a one-line message: escaped and at most about 80 characters."""
    return repr(name if len(name) <= 80 else name[:77] + "...")


def find_inside(directory: Path, name: str) -> Path | None:
    """The file `name` of a checkpoint directory, or None where there is none.

    Raises ModelFileError for anything but a plain name of a regular file, and for a symbolic link
    that leaves the directory. The Hugging Face cache's own links, from `snapshots/<revision>` to
    `blobs` of the same repository, are followed.
    """
    if not is_plain_name(name):
        raise ModelFileError(f"{quote(name)} is not a plain file name; fix the name in the index")
    home = directory.resolve()
    path = home / name
    if not path.exists():
        if path.is_symlink():
            raise ModelFileError(f"{path} is a dangling link; download the file again")
        return None
    target = path.resolve()
    allowed = [home]
    if home.parent.name == "snapshots":
        allowed.append(home.parent.parent / "blobs")
    if target.parent not in allowed:
        raise ModelFileError(f"{path} links out of its directory, to {target}; copy the file there")
    if not target.is_file():
        raise ModelFileError(f"{path} is not a regular file; put the file itself there")
    return path


def is_plain_name(name: str) -> bool:
    """Whether `name` is one path component of its own: no separator, no parent, no NUL."""
    return name not in ("", ".", "..") and not any(char in name for char in "/\\\0")


def read_text(path: Path) -> str:
    """The whole of a UTF-8 file of at most 64 MiB; ModelFileError otherwise."""
    try:
        with path.open("rb") as file:
            data = file.read(MAX_TEXT_BYTES + 1)
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read ({error.strerror}); check its mode") from None
    if len(data) > MAX_TEXT_BYTES:
        raise ModelFileError(f"{path} is larger than {MAX_TEXT_BYTES} bytes; is it the right file?")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError as error:
        raise ModelFileError(
            f"{path} is not UTF-8 text at byte {error.start}; download it again"
        ) from None


def parse_json_object(text: str, where: str) -> dict[str, Any]:
    """Parse a JSON object without repeated keys; ModelFileError names `where` otherwise."""
    try:
        parsed = json.loads(text, object_pairs_hook=_unique_keys)
    except RecursionError:
        raise ModelFileError(f"{where}: JSON is nested too deep; download it again") from None
    except ValueError as error:  # JSONDecodeError, an integer too long, a repeated key
        raise ModelFileError(f"{where}: not valid JSON ({error}); download it again") from None
    if not isinstance(parsed, dict):
        raise ModelFileError(
            f"{where}: a JSON object is expected, not {type(parsed).__name__}; download it again"
        )
    return parsed


def read_json_object(directory: Path, name: str) -> dict[str, Any] | None:
    """The JSON object in the file `name` of a directory, or None where there is no such file."""
    path = find_inside(directory, name)
    return None if path is None else parse_json_object(read_text(path), str(path))


def map_file(path: Path) -> mmap.mmap:
    """Map a regular, non-empty file for reading; ModelNotFound or ModelFileError otherwise."""
    if not path.exists():
        raise ModelNotFound(f"{path} does not exist; check the path")
    if not path.is_file():  # opening a pipe would wait for a writer
        raise ModelFileError(f"{path} is not a regular file; pass a model file")
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read ({error.strerror}); check its mode") from None
    except ValueError:  # an empty file cannot be mapped
        raise ModelFileError(f"{path} is empty; download it again") from None


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys: dict[str, Any] = {}
    for key, value in pairs:
        if key in keys:
            raise ValueError(f"key {quote(key)} appears twice")
        keys[key] = value
    return keys
