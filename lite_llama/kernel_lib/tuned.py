"""Tables of launches that `lite-llama tune` found: the user's own first, then the shipped ones.

A table is one JSON file a GPU, `{"gpu": name, "entries": [...]}`. An entry holds the launches of
one model shape, dtype and batch size, and the versions of the kernels they were measured with: one
of other products is passed over, and of another attention only its launch. docs/tuning.md has the
format.
"""

import hashlib
import io
import json
import tokenize
from collections.abc import Iterator, Mapping
from dataclasses import MISSING, dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

from lite_llama.errors import ConfigError
from lite_llama.kernel_lib.gpu import GpuSpec

# Batch sizes that are tuned; one between them takes the launches of the next.
BATCHES = (1, 2, 4, 8, 16)
_PACKAGE = Path(__file__).parent.parent
SHIPPED = _PACKAGE / "tuned"
# The kernels of the decode chain, from the package's root.
PRODUCTS = ("kernel_lib/decode_*.py", "ops/linear_add/kernel.py", "ops/norm_*/kernel.py")
ATTENTION = ("ops/attention_decode/kernel.py",)
_POWERS = ("block_n", "block_k", "num_warps", "first_tiles")
_MAX_INTEGER = 1 << 20

Launch = TypeVar("Launch")


@dataclass(frozen=True)
class Entry:
    """Launches by site, as JSON values; `where` names file and place for messages."""

    shape: Mapping[str, int]
    dtype: str
    batch: int
    kernels: str
    attention_kernel: str
    sites: Mapping[str, Any]
    measured: Mapping[str, Any]
    where: str

    @property
    def is_stale(self) -> bool:
        """Whether its products were measured with other kernels than the present ones."""
        return self.kernels != kernel_version(PRODUCTS)

    @property
    def has_stale_attention(self) -> bool:
        """The same of its attention."""
        return self.attention_kernel != kernel_version(ATTENTION)


def user_folder() -> Path:
    """Where `lite-llama tune` writes, and where tables are looked for first."""
    return Path.home() / ".cache" / "lite_llama" / "tuned"


def find(gpu: GpuSpec, shape: Mapping[str, int], dtype: str, num_tokens: int) -> Entry | None:
    """The entry for a model on a GPU at this batch size, or None; ConfigError for a bad table.

    From two tokens on one of more tokens serves too: tensor cores multiply eight at a time.
    """
    larger = [size for size in BATCHES if size >= num_tokens]
    batches = larger if num_tokens > 1 else larger[:1]
    fitting = [
        entry
        for folder in (user_folder(), SHIPPED)
        for entry in read(folder / f"{gpu.slug}.json")
        if (entry.shape, entry.dtype) == (shape, dtype)
        and entry.batch in batches
        and not entry.is_stale
    ]
    return min(fitting, key=lambda entry: entry.batch, default=None)


def read(path: Path) -> list[Entry]:
    """Every entry of a table, none if there is no file; ConfigError names file and key."""
    try:
        table = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path} cannot be read as JSON ({error}); delete it") from None
    listed = _member(table, "entries", list, str(path))
    return [_entry(item, f"{path}: entries[{i}]") for i, item in enumerate(listed)]


def _entry(item: Any, where: str) -> Entry:
    return Entry(
        shape=_member(item, "shape", dict, where),
        dtype=_member(item, "dtype", str, where),
        batch=_member(item, "batch", int, where),
        kernels=_member(item, "kernels", str, where),
        attention_kernel=_member(item, "attention_kernel", str, where),
        sites=_member(item, "sites", dict, where),
        measured=_member(item, "measured", dict, where),
        where=where,
    )


def _member(holder: Any, key: str, kind: type, where: str) -> Any:
    value = holder.get(key) if isinstance(holder, dict) else None
    if type(value) is not kind:
        raise malformed(f"{where}.{key}", value, f"a JSON {kind.__name__}")
    return value


def launch(cls: type[Launch], values: Any, where: str) -> Launch:
    """A launch dataclass from an entry's JSON values; ConfigError names `where` and the field."""
    if not isinstance(values, dict):
        raise malformed(where, values, "an object")
    known = {field.name: field for field in fields(cls)}  # type: ignore[arg-type]
    for name in values:
        if name not in known:
            raise malformed(f"{where}.{name}", values[name], f"one of {', '.join(known)}")
    for name, field in known.items():
        if name not in values:
            if field.default is MISSING:
                raise malformed(f"{where}.{name}", None, "a value")
            continue
        expected = _expected(name, field.type, values[name])
        if expected:
            raise malformed(f"{where}.{name}", values[name], expected)
    return cls(**values)


def _expected(name: str, kind: Any, value: Any) -> str:
    """What a field should hold, "" if it does."""
    if kind is bool:
        return "" if type(value) is bool else "true or false"
    if kind is float:
        fits = type(value) in (int, float) and -1.0 <= value <= 1.0
        return "" if fits else "a number from -1 to 1"
    least = 0 if name == "num_stages" else 1
    if type(value) is not int or not least <= value <= _MAX_INTEGER:
        return f"an integer from {least} to {_MAX_INTEGER}"
    if name in _POWERS and value & (value - 1):
        return "a power of two"
    return ""


def malformed(where: str, value: Any, expected: str) -> ConfigError:
    """What to raise where a table holds `value` in place of what is `expected`."""
    return ConfigError(f"{where} is {value!r:.60}, expected {expected}; tune again or delete it")


@cache
def kernel_version(patterns: tuple[str, ...]) -> str:
    """Hash of these kernels, the same whatever their comments and line breaks."""
    found = [path for pattern in patterns for path in sorted(_PACKAGE.glob(pattern))]
    digest = hashlib.sha256()
    for path in found:
        digest.update("".join(_code(path.read_text(encoding="utf-8"))).encode())
    return digest.hexdigest()[:12]


def _code(source: str) -> Iterator[str]:
    """The tokens that mean something, without spaces, so that Python's version does not count."""
    for token in tokenize.generate_tokens(io.StringIO(source).readline):
        if token.type == tokenize.INDENT:
            yield "{"
        elif token.type == tokenize.DEDENT:
            yield "}"
        elif token.type not in (tokenize.COMMENT, tokenize.NL):
            yield "".join(token.string.split()) or ";"
