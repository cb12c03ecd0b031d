"""What may be tried at each site of the chain; pure."""

import math
from collections.abc import Callable, Hashable, Iterable, Iterator
from dataclasses import astuple, dataclass, fields, replace
from functools import partial
from typing import Any

import torch

from lite_llama.kernel_lib.gemv_launch import GemvLaunch
from lite_llama.kernel_lib.gpu import GpuSpec
from lite_llama.models.chain_launches import (
    ChainLaunches,
    owns_pairs,
    weight_shapes,
    without_early_loads,
)
from lite_llama.models.config import ModelConfig
from lite_llama.ops.attention_decode.launch import Launch

SITES = ("carveout", "qkv", "attention", "o", "gate_up", "down", "head")
# Sites whose kernels follow each other; a layer's down comes before the next one's qkv. And what
# decides how much shared memory there is, with what takes most of it.
NEIGHBOURS = (
    ("qkv", "attention"),
    ("attention", "o"),
    ("o", "gate_up"),
    ("gate_up", "down"),
    ("down", "qkv"),
    ("down", "head"),
    ("carveout", "attention"),
)
RATIOS = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)
_CARVEOUTS = (-1, 28, 43, 57, 72, 86, 100)
# Values a thread holds of a tile in registers: fewer leave the loads short, more spill.
_VALUES_PER_THREAD = {1: (16, 32, 64), 2: (16, 32)}
# Groups of rows of a program, of at most so many columns; rows that no tile holds without padding
# the most of which are so many tiles.
_GROUPS, _WHOLE_ROW, _MOST_TILES = (2, 4, 8), 9216, 9
# Values of such rows that a thread holds: two groups are on their way.
_MOST_VALUES = 80
# Bytes of weight tiles in flight through shared memory, a program.
_BYTES_IN_FLIGHT = (16 << 10, 100 << 10)
_RING_BYTES = (48 << 10, 132 << 10)
# Values of the keys that a program of attention loads before its wait, into its registers.
_MOST_FIRST_VALUES = 256 * 64
_MOST_PROGRAMS = 128


@dataclass(frozen=True)
class AttentionSite:
    """The attention site's two fields of a chain as one value."""

    launch: Launch
    overlap: float


@dataclass(frozen=True)
class Carveout:
    """The chain's split of on-chip memory, in the place of a site."""

    percent: int


Site = GemvLaunch | AttentionSite | Carveout


def get(chain: ChainLaunches, site: str) -> Site:
    """What a chain launches at a site; its attention must be settled."""
    if site == "carveout":
        return Carveout(chain.carveout)
    if site != "attention":
        product: GemvLaunch = getattr(chain, site)
        return product
    if chain.attention is None:
        raise AssertionError("the attention launch is not settled")
    return AttentionSite(chain.attention, chain.attention_overlap)


def put(chain: ChainLaunches, site: str, value: Site) -> ChainLaunches:
    """The chain with another launch at a site."""
    if isinstance(value, AttentionSite):
        return replace(chain, attention=value.launch, attention_overlap=value.overlap)
    if isinstance(value, Carveout):
        return replace(chain, carveout=value.percent)
    return replace(chain, **{site: value})  # type: ignore[arg-type]


@dataclass(frozen=True)
class Space:
    """Candidates for one model, batch size and GPU; `dtype` of weights and activations."""

    config: ModelConfig
    num_tokens: int
    dtype: torch.dtype
    gpu: GpuSpec

    def identity(self, site: str, value: Site) -> Hashable:
        """Equal for launches that are one and the same to the GPU: few tiles, few triggers."""
        if isinstance(value, AttentionSite):
            return value.launch, value.overlap if self.gpu.has_pdl else -1.0
        if isinstance(value, Carveout):
            return value.percent if self.gpu.has_pdl else -1
        if value.overlap < 0 or not self.gpu.has_pdl:
            value = replace(value, overlap=-1.0, preload=True, prefetch=0.0)
        shape = weight_shapes(self.config)[site]
        if value.is_ring(shape[1], self.dtype, self.gpu):
            # A ring's successor may start at once, or when the last tile is on its way.
            value = replace(value, overlap=math.ceil(value.overlap), prefetch=0.0)
            return astuple(replace(value, groups=value.ring_groups(shape[1])))
        constants = value.constants(shape[1], self.gpu)
        return value.block_n, value.num_groups(shape[0]), tuple(sorted(constants.items()))

    def distinct(self, site: str, values: Iterable[Site]) -> list[Site]:
        """The values that differ to the GPU, in their order."""
        found: dict[Hashable, Site] = {}
        for value in values:
            found.setdefault(self.identity(site, value), value)
        return list(found.values())

    def tiles(self, site: str, value: Site) -> list[Site]:
        """Other tiles, launched in the mode of `value`; that one comes first."""
        if isinstance(value, AttentionSite):
            found: Iterable[Site] = self._attention_tiles(value)
        elif isinstance(value, Carveout):
            found = map(Carveout, _CARVEOUTS)
        else:
            found = self._product_tiles(site, value)
        return self.distinct(site, [value, *found])

    def coordinates(self, site: str) -> list[Callable[[Any], list[Site]]]:
        """What is varied of a tile, one after the other: each gives all values of a coordinate."""
        if site == "carveout":
            return []
        if site == "attention":
            first_tiles = partial(_first_tiles, most=_MOST_FIRST_VALUES // self.config.head_dim)
            return [first_tiles, _programs, _attention_modes]
        return [_modes, _overlaps, _prefetches, _switches]

    def everything(self, site: str, value: Site) -> list[Site]:
        """Every tile in every mode, for an exhaustive search."""
        found = self.tiles(site, value)
        for vary in self.coordinates(site):
            found = self.distinct(site, [*found, *(other for one in found for other in vary(one))])
        return found

    def _product_tiles(self, site: str, value: GemvLaunch) -> Iterator[GemvLaunch]:
        num_rows, num_columns = weight_shapes(self.config)[site]
        widest = 1 << (num_columns - 1).bit_length()
        rows_each = 2 if owns_pairs(self.config, site) else 1
        rings = list(self._rings(site, value, num_rows * rows_each, rows_each))
        if self.num_tokens > 1 and rings:  # nothing else is near them: docs/lab/decode_chain.md
            yield from rings
            return
        yield from self._in_registers(site, value, rows_each)
        if self.num_tokens == 1:
            yield from rings
            return
        for block_n, block_k, num_warps, stages in self._shared_tiles(widest, rows_each):
            tile = replace(value, block_n=block_n, block_k=block_k, num_warps=num_warps, groups=1)
            if value.num_stages == 0:
                tile = replace(tile, prefetch=1.0)
            yield replace(tile, num_stages=stages, preload=False)

    def _in_registers(self, site: str, value: GemvLaunch, rows_each: int) -> Iterator[GemvLaunch]:
        num_rows, num_columns = weight_shapes(self.config)[site]
        widest = 1 << (num_columns - 1).bit_length()
        # Programs of rotary pairs, whose rows are not neighbours, have no groups.
        may_group = not (site == "qkv" and rows_each == 2) and num_columns <= _WHOLE_ROW
        single = replace(value, groups=1)
        if value.num_stages:
            single = replace(single, num_stages=0, preload=True, prefetch=0.0)
        for block_n, block_k, num_warps in self._register_tiles(num_rows, widest, rows_each):
            tile = replace(single, block_n=block_n, block_k=block_k, num_warps=num_warps)
            yield tile
            if may_group and num_columns <= block_k:
                yield from _grouped(tile, num_rows)
        if may_group:
            for block_n, block_k, num_warps in _row_tiles(num_columns, widest, rows_each):
                tile = replace(single, block_n=block_n, block_k=block_k, num_warps=num_warps)
                yield from _grouped(tile, num_rows)

    def _rings(
        self, site: str, value: GemvLaunch, num_rows: int, rows_each: int
    ) -> Iterator[GemvLaunch]:
        num_columns = weight_shapes(self.config)[site][1]
        for rows in (16, 32):
            # Programs for two on each SM, and half or twice as many.
            filling = max(1, num_rows // (rows * 2 * self.gpu.num_sms))
            counts = {1 << max(0, filling.bit_length() + i) for i in (-1, 0, 1)}
            # What adds a bias or a residual, or rotates, owns one set of rows.
            groups = sorted(counts) if site in ("gate_up", "head") else [1]
            for block_k, num_warps in ((256, 8), (512, 8), (512, 16), (1024, 16)):
                for stages in (2, 3, 4, 6, 8):
                    in_flight = rows * block_k * stages * self.dtype.itemsize
                    if not _RING_BYTES[0] <= in_flight <= _RING_BYTES[1]:
                        continue
                    ring = replace(
                        value, block_n=rows // rows_each, block_k=block_k, num_warps=num_warps,
                        num_stages=stages, overlap=0.0, preload=True, prefetch=0.0,
                    )  # fmt: skip
                    if ring.is_ring(num_columns, self.dtype, self.gpu):
                        yield from (replace(ring, groups=count) for count in groups)

    def _register_tiles(
        self, num_rows: int, widest: int, rows_each: int
    ) -> Iterator[tuple[int, int, int]]:
        block_rows = (4, 8, 16) if num_rows >= 65536 else (1, 2, 4)
        wanted = _VALUES_PER_THREAD.get(self.num_tokens, ())
        for block_n in block_rows:
            for block_k in (512, 1024, 2048, 4096, 8192):
                for num_warps in (1, 2, 4, 8, 16):
                    values = block_n * rows_each * block_k // (32 * num_warps)
                    if block_k <= max(widest, 512) and values in wanted:
                        yield block_n, block_k, num_warps

    def _shared_tiles(self, widest: int, rows_each: int) -> Iterator[tuple[int, int, int, int]]:
        most = min(_BYTES_IN_FLIGHT[1], self.gpu.shared_bytes_per_block)
        for rows in (16, 32, 64):
            for block_k in (128, 256, 512):
                tile_bytes = rows * block_k * self.dtype.itemsize
                for stages in (4, 6):
                    if block_k > widest or not _BYTES_IN_FLIGHT[0] <= tile_bytes * stages <= most:
                        continue
                    for num_warps in (1, 2, 4, 8):
                        if 64 <= tile_bytes // (32 * num_warps) <= 128:
                            yield rows // rows_each, block_k, num_warps, stages

    def _attention_tiles(self, value: AttentionSite) -> Iterator[AttentionSite]:
        for block_n in (32, 64, 128):
            for min_chunk in (64, 128, 256):
                for num_warps in (2, 4, 8):
                    for num_stages in (2, 3, 5):
                        # A chunk holds whole tiles; a warp of a small tile has nothing to do.
                        if min_chunk < block_n or (num_warps == 8) > (block_n == 128):
                            continue
                        launch = replace(
                            value.launch, min_chunk=min_chunk, block_n=block_n,
                            num_warps=num_warps, num_stages=num_stages,
                        )  # fmt: skip
                        yield replace(value, launch=launch)


def _grouped(tile: GemvLaunch, num_rows: int) -> Iterator[GemvLaunch]:
    """The tile with as many groups of rows as the weight's rows can be shared out to."""
    more = (replace(tile, groups=count) for count in _GROUPS)
    yield from (one for one in more if one.num_groups(num_rows) > 1)


def _row_tiles(num_columns: int, widest: int, rows_each: int) -> Iterator[tuple[int, int, int]]:
    """Tiles of which several make whole rows with less padding than one of `widest` columns."""
    for block_k in (256, 512, 1024, 2048):
        tiles = -(-num_columns // block_k)
        if not 1 < tiles <= _MOST_TILES or tiles * block_k >= min(widest, 1.15 * num_columns):
            continue
        for block_n in (1, 2, 4):
            for num_warps in (1, 2, 4, 8, 16):
                values = block_n * rows_each * block_k // (32 * num_warps)
                if values >= 8 and values * tiles <= _MOST_VALUES:
                    yield block_n, block_k, num_warps


def _modes(value: GemvLaunch) -> list[Site]:
    """No dependent launch, one without early loads, and one with each kind of early load."""
    on = replace(value, overlap=max(value.overlap, 0.0))
    loads = [
        replace(on, preload=preload, prefetch=prefetch)
        # A tile that goes through shared memory is never loaded before the wait.
        for preload in ((False, True) if value.num_stages == 0 else (value.preload,))
        for prefetch in (0.0, 1.0)
    ]
    return [replace(value, overlap=-1.0), *loads]


def _overlaps(value: GemvLaunch) -> list[Site]:
    return [replace(value, overlap=ratio) for ratio in RATIOS if value.overlap >= 0]


def _prefetches(value: GemvLaunch) -> list[Site]:
    return [replace(value, prefetch=ratio) for ratio in RATIOS if value.overlap >= 0]


def _switches(value: GemvLaunch) -> list[Site]:
    """Each field that is true or false, turned."""
    return [
        replace(value, **{field.name: not getattr(value, field.name)})
        for field in fields(value)
        if field.type is bool
        and value.overlap >= 0
        and (field.name != "preload" or value.num_stages == 0)
    ]


def _first_tiles(value: AttentionSite, most: int) -> list[Site]:
    """What a program loads before the wait, in its registers: at most so many keys."""
    launch = value.launch
    return [
        replace(value, launch=replace(launch, first_tiles=count))
        for count in (1, 2, 4)
        if count * launch.block_n <= min(launch.min_chunk, most)
    ]


def _programs(value: AttentionSite) -> list[Site]:
    """A quarter to four times as many programs a head, each with one chunk."""
    present = value.launch.programs_per_head
    counts = sorted(
        {max(1, min(present * times // 4, _MOST_PROGRAMS)) for times in (1, 2, 4, 8, 16)}
    )
    return [
        replace(value, launch=replace(value.launch, max_chunks=count, programs_per_head=count))
        for count in counts
    ]


def _attention_modes(value: AttentionSite) -> list[Site]:
    return [replace(value, overlap=overlap) for overlap in (-1.0, 0.0, 1.0)]


def describe(value: Site) -> str:
    """A launch in a few words, for tables."""
    if isinstance(value, AttentionSite):
        launch = value.launch
        keys = launch.block_n * launch.first_tiles
        first = f"{keys} keys first, then " if launch.first_tiles > 1 else ""
        return (
            f"chunks <= {launch.max_chunks} of >= {launch.min_chunk}, "
            f"{launch.programs_per_head} programs, {first}{launch.block_n} keys, "
            f"{launch.num_warps} warps, {launch.num_stages} stages, "
            f"{'plain' if value.overlap < 0 else f'PDL, overlap {value.overlap:g}'}"
        )
    if isinstance(value, Carveout):
        return f"{value.percent} % shared" if value.percent >= 0 else "as the driver chooses"
    tile = f"{value.block_n} x {value.block_k}, {value.num_warps} warps"
    if value.groups > 1:
        tile += f", {value.groups} groups"
    if value.num_stages:
        tile += f", {value.num_stages} stages"
    if value.overlap < 0:
        return f"{tile}, plain"
    early = ["preload"] if value.preload and not value.num_stages else []
    early += [f"prefetch {value.prefetch:g}"] if value.prefetch else []
    return f"{tile}, PDL, overlap {value.overlap:g}" + "".join(f", {word}" for word in early)


def arithmetic(chain: ChainLaunches) -> Hashable:
    """Equal for chains that sum in the same order: their results are equal bit by bit."""
    # Attention in a chain folds its partial results in another order than alone.
    return astuple(without_early_loads(chain)), chain.attention_overlap >= 0
