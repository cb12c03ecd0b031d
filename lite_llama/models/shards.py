"""Which part of every parameter a rank holds when several share one model.

Megatron's split (Shoeybi et al. 2019): query, key and value heads, gate and up rows and the rows of
the head are shared out; so are the columns of o and down, whose products are then summed over the
ranks. What is left (embedding, norms, the bias of o) every rank has whole. Parts are cut out of the
bytes as they are stored, so that every format can be shared and a rank reads its own part only.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from lite_llama.errors import ConfigError
from lite_llama.formats.block_sizes import BLOCK_SIZES, nbytes
from lite_llama.formats.raw_tensor import RawTensor
from lite_llama.models.config import ModelConfig
from lite_llama.models.families.family import Part

Parts = tuple[tuple[RawTensor, Part], ...]


@dataclass(frozen=True)
class Share:
    """The part of rank `rank` (from 0) of a model that `size` ranks hold together."""

    rank: int
    size: int

    def of(self, count: int, first: int = 0) -> range:
        """This rank's numbers out of first .. first + count, which the size divides."""
        step = count // self.size
        return range(first + self.rank * step, first + (self.rank + 1) * step)

    def config(self, whole: ModelConfig) -> ModelConfig:
        """The model as one rank sees it: fewer heads, a narrower feed-forward block."""
        return replace(
            whole,
            num_q_heads=whole.num_q_heads // self.size,
            num_kv_heads=whole.num_kv_heads // self.size,
            intermediate_size=whole.intermediate_size // self.size,
        )

    def rows(self, name: str, whole: ModelConfig) -> list[range] | None:
        """The rows of parameter `name` that this rank holds, ascending; None: all of them."""
        match _stem(name):
            case "qkv":
                q, kv = whole.q_size, whole.kv_size
                return [self.of(q), self.of(kv, q), self.of(kv, q + kv)]
            case "gate_up":
                size = whole.intermediate_size
                return [self.of(size), self.of(size, size)]
            case "head":
                return [self.of(whole.vocab_size)]
        return None

    def columns(self, name: str, whole: ModelConfig) -> range | None:
        """The columns of matrix `name` that this rank holds; None: all of them."""
        if not name.endswith(".weight"):
            return None
        widths = {"o": whole.q_size, "down": whole.intermediate_size}
        width = widths.get(_stem(name))
        return None if width is None else self.of(width)

    def cut(self, name: str, parts: Parts, whole: ModelConfig) -> Parts:
        """This rank's part of a parameter's source tensors, with their row order applied."""
        rows, columns = self.rows(name, whole), self.columns(name, whole)
        if rows is None:
            if columns is None:
                return parts
            return tuple((take_columns(raw, columns), part) for raw, part in parts)
        cut = []
        first = 0
        for raw, part in parts:
            count = raw.shape[0]
            inside = [
                range(max(each.start - first, 0), min(each.stop - first, count))
                for each in rows
                if each.start < first + count and each.stop > first
            ]
            order = None if part.rows is None else part.rows(whole, count)
            cut.append((take_rows(raw, inside, order), Part(part.name)))
            first += count
        return tuple(cut)

    def cut_values(self, name: str, values: Tensor, whole: ModelConfig) -> Tensor:
        """This rank's part of a dense parameter in canonical row order; it may be a view."""
        rows, columns = self.rows(name, whole), self.columns(name, whole)
        if rows is not None:
            pieces = [values[each.start : each.stop] for each in rows]
            return pieces[0] if len(pieces) == 1 else torch.cat(pieces)
        if columns is not None:
            return values[:, columns.start : columns.stop].contiguous()
        return values


def _stem(name: str) -> str:
    """`layers.3.qkv.weight` -> `qkv`."""
    return name.rpartition(".")[0].rpartition(".")[2]


def take_rows(
    raw: RawTensor,
    rows: Sequence[range],
    order: "np.ndarray[tuple[int], np.dtype[np.int64]] | None",
) -> RawTensor:
    """Some rows of a tensor; with `order`, of the tensor whose row i is row order[i] of `raw`."""
    stored = raw.data.reshape(raw.shape[0], -1)
    pieces = [
        stored[each.start : each.stop] if order is None else stored[order[each.start : each.stop]]
        for each in rows
    ]
    data = pieces[0] if len(pieces) == 1 else np.concatenate(pieces)
    shape = (sum(map(len, rows)), *raw.shape[1:])
    return replace(raw, shape=shape, data=np.ascontiguousarray(data).reshape(-1))


def take_columns(raw: RawTensor, columns: range) -> RawTensor:
    """Some columns of a matrix, in whole blocks of its format (see `check_blocks`)."""
    rows, width = raw.shape
    nbytes(raw.format, raw.shape)  # an unknown format is said here
    block = BLOCK_SIZES[raw.format]
    stored = raw.data.reshape(rows, width // block.values, block.bytes)
    data = stored[:, columns.start // block.values : columns.stop // block.values]
    return replace(raw, shape=(rows, len(columns)), data=np.ascontiguousarray(data).reshape(-1))


def check_sizes(config: ModelConfig, size: int) -> None:
    """Raise ConfigError if `size` ranks cannot share a model of this configuration."""
    sizes = {
        "key heads": config.num_kv_heads,
        "query heads": config.num_q_heads,
        "rows of the feed-forward block": config.intermediate_size,
        "tokens of the vocabulary": config.vocab_size,
    }
    fitting = [
        str(n) for n in range(1, config.num_kv_heads + 1) if not any(v % n for v in sizes.values())
    ]
    for what, count in sizes.items():
        if count % size:
            raise ConfigError(
                f"tensor_parallel_size is {size}, limit a divisor of the model's {count} {what}; "
                f"set one of {', '.join(fitting)}"
            )


def check_blocks(name: str, parts: Parts, whole: ModelConfig, size: int) -> None:
    """Raise ConfigError if a rank's columns of parameter `name` would cut through blocks."""
    columns = Share(0, size).columns(name, whole)
    if columns is None:
        return
    for raw, _ in parts:
        nbytes(raw.format, raw.shape)
        values = BLOCK_SIZES[raw.format].values
        if len(columns) % values:
            raise ConfigError(
                f"tensor_parallel_size is {size}, which leaves a rank {len(columns)} columns of "
                f"tensor {raw.name!r}, limit a multiple of the {values} values of a {raw.format} "
                "block; lower it or take a file in another format"
            )
