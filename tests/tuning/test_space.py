"""Candidates: what is in them, and that none is there twice."""

from dataclasses import dataclass, replace

import pytest
import torch

from lite_llama.kernel_lib.gemv_launch import GemvLaunch
from lite_llama.kernel_lib.gpu import A100, H200, INTERPRETER
from lite_llama.models.chain_launches import weight_shapes, without_early_loads, without_overlap
from lite_llama.ops.attention_decode.launch import Launch
from lite_llama.tuning.space import (
    SITES,
    AttentionSite,
    Carveout,
    arithmetic,
    describe,
    get,
    put,
)
from tests.tuning.fakes import CONFIG, space, start


@pytest.mark.parametrize("num_tokens", [1, 2, 4, 8])
def test_a_site_has_a_searchable_number_of_tiles_that_all_differ(num_tokens: int) -> None:
    for site in SITES[1:]:
        here = space(num_tokens)
        tiles = here.tiles(site, get(start(num_tokens), site))
        assert tiles[0] == get(start(num_tokens), site)
        assert 12 <= len(tiles) <= 110, (site, len(tiles))
        assert len({here.identity(site, tile) for tile in tiles}) == len(tiles)


def test_splits_of_an_sm_matter_where_kernels_overlap() -> None:
    tiles = space().tiles("carveout", Carveout(72))
    assert tiles == [Carveout(percent) for percent in (72, -1, 28, 43, 57, 86, 100)]
    assert replace(space(), gpu=A100).tiles("carveout", Carveout(72)) == [Carveout(72)]
    changed = put(start(), "carveout", Carveout(43))
    assert changed == replace(start(), carveout=43)
    assert arithmetic(changed) == arithmetic(start())
    assert [describe(one) for one in tiles[:2]] == ["72 % shared", "as the driver chooses"]


def test_several_tokens_go_to_tensor_cores_by_rings_where_those_fit() -> None:
    stages = {
        n: {bool(tile.num_stages) for tile in space(n).tiles("o", start(n).o)} for n in (1, 2, 4, 8)
    }
    # One token's weights may stream through registers, too.
    assert stages == {1: {False, True}, 2: {True}, 4: {True}, 8: {True}}


def test_qkv_of_a_model_with_head_norms_has_rows_and_no_pairs() -> None:
    normed = replace(space(), config=replace(CONFIG, qk_norm=True))
    threads = {
        rows_each: {
            tile.block_n * rows_each * tile.block_k // (32 * tile.num_warps)
            for tile in here.tiles("qkv", get(start(), "qkv"))[1:]
            if isinstance(tile, GemvLaunch) and not tile.num_stages
        }
        for rows_each, here in ((2, space()), (1, normed))
    }
    assert threads == {2: {16, 32, 64}, 1: {16, 32, 64}}


def test_ratios_that_mean_the_same_tile_are_one_candidate() -> None:
    one_tile = GemvLaunch(1, 2048, 2, overlap=0.0)
    overlaps = [replace(one_tile, overlap=ratio) for ratio in (0.0, 0.4, 1.0)]
    assert space().distinct("qkv", overlaps) == overlaps[:1]
    four_tiles = [replace(value, block_k=512) for value in overlaps]
    assert space().distinct("qkv", four_tiles) == four_tiles


def test_without_dependent_launch_there_are_no_modes() -> None:
    old = replace(space(), gpu=A100)
    value = GemvLaunch(1, 512, 1, overlap=0.0)
    for vary in old.coordinates("qkv"):
        assert old.distinct("qkv", [value, *vary(value)]) == [value]


def test_every_mode_is_reached_from_a_tile() -> None:
    value = GemvLaunch(1, 512, 1, overlap=0.0)
    modes = {(v.overlap, v.preload, v.prefetch) for v in space().coordinates("o")[0](value)}
    assert modes == {
        (-1.0, True, 0.0), (0.0, False, 0.0), (0.0, True, 0.0), (0.0, False, 1.0), (0.0, True, 1.0),
    }  # fmt: skip


def test_a_ring_starts_its_successor_at_once_or_at_the_end() -> None:
    ring = GemvLaunch(16, 512, 8, num_stages=4, overlap=0.0)
    shape = weight_shapes(CONFIG)["o"]
    assert ring.is_ring(shape[1], torch.bfloat16, H200)
    ratios = [replace(ring, overlap=ratio) for ratio in (-1.0, 0.0, 0.2, 1.0)]
    assert space(8).distinct("o", ratios) == ratios[:3]
    assert space(8).distinct("o", [ring, replace(ring, prefetch=1.0)]) == [ring]
    everything = space(8).tiles("o", ring)
    assert all(isinstance(one, GemvLaunch) and one.preload for one in everything)
    # In float32 there are none, nor for columns that no tile divides.
    assert not ring.is_ring(shape[1], torch.float32, H200)
    assert not ring.is_ring(shape[1] + 64, torch.bfloat16, H200)
    assert not ring.is_ring(shape[1], torch.bfloat16, INTERPRETER)


@dataclass(frozen=True)
class WiderLaunch(GemvLaunch):
    """What a kernel with one more switch would take."""

    swizzled: bool = False


def test_a_switch_that_is_added_to_the_launch_is_searched() -> None:
    value = WiderLaunch(1, 512, 1, overlap=0.0)
    assert replace(value, swizzled=True) in space().coordinates("o")[-1](value)


@pytest.mark.parametrize(
    ("present", "counts"), [(8, [2, 4, 8, 16, 32]), (2, [1, 2, 4, 8]), (64, [16, 32, 64, 128])]
)
def test_attention_is_tried_with_fewer_and_more_programs_of_one_chunk_each(
    present: int, counts: list[int]
) -> None:
    launch = Launch(present, 128, present, 64, num_warps=4, num_stages=5)
    programs = space().coordinates("attention")[1]
    found = [site.launch for site in programs(AttentionSite(launch, 0.0))]
    assert [how.programs_per_head for how in found] == counts
    assert [how.max_chunks for how in found] == counts


@pytest.mark.parametrize(("head_dim", "keys"), [(64, [64, 128, 256]), (128, [64, 128])])
def test_keys_before_the_wait_are_as_many_as_registers_hold(head_dim: int, keys: list[int]) -> None:
    here = replace(space(), config=replace(CONFIG, head_dim=head_dim))
    site = AttentionSite(Launch(32, 256, 32, 64, num_warps=4, num_stages=5), 0.0)
    found = [one.launch for one in here.coordinates("attention")[0](site)]
    assert [one.first_tiles * one.block_n for one in found] == keys


def test_modes_leave_the_arithmetic_alone_and_tiles_do_not() -> None:
    chain = start()
    assert arithmetic(without_early_loads(chain)) == arithmetic(chain)
    assert arithmetic(replace(chain, attention_overlap=1.0)) == arithmetic(chain)
    # Attention alone folds its partial results in another order.
    plain = without_overlap(chain)
    assert arithmetic(plain) == arithmetic(replace(chain, attention_overlap=-1.0))
    assert arithmetic(plain) != arithmetic(chain)
    early = replace(chain, down=replace(chain.down, prefetch=0.6, overlap=0.2))
    assert arithmetic(early) == arithmetic(chain)
    assert arithmetic(replace(chain, down=replace(chain.down, num_warps=16))) != arithmetic(chain)


def test_the_baseline_has_no_dependent_launch_at_any_site() -> None:
    plain = without_overlap(start())
    for site in SITES[1:]:
        value = get(plain, site)
        assert not isinstance(value, Carveout)
        assert value.overlap == -1.0
        assert "plain" in describe(value)
        assert put(plain, site, value) == plain


def test_groups_are_of_whole_rows_and_fit_the_weight() -> None:
    for site, shape in weight_shapes(CONFIG).items():
        tiles = space().tiles(site, get(start(), site))
        registers = [one for one in tiles if isinstance(one, GemvLaunch) and not one.num_stages]
        grouped = [one for one in registers if one.groups > 1]
        assert bool(grouped) == (site != "qkv"), site
        assert all(one.num_groups(shape[0]) == one.groups for one in grouped)
        assert {one.block_k for one in grouped} <= {1 << (shape[1] - 1).bit_length()}
    # Rows of 1536 columns by tiles of their own, or by one of 2048.
    odd = replace(space(), config=replace(CONFIG, hidden_size=1536))
    registers = [one for one in odd.tiles("gate_up", start().gate_up) if not one.num_stages]
    grouped = [one for one in registers if one.groups > 1]
    assert {one.block_k for one in grouped} == {256, 512, 2048}
    normed = replace(odd, config=replace(odd.config, qk_norm=True))
    assert any(one.groups > 1 for one in normed.tiles("qkv", start().qkv))
    for site in weight_shapes(CONFIG):
        rings = space(8).tiles(site, get(start(8), site))
        counts = {one.groups for one in rings if isinstance(one, GemvLaunch)}
        assert (counts == {1}) == (site in ("qkv", "o", "down")), site
    assert "4 groups" in describe(GemvLaunch(1, 2048, 4, groups=4))
