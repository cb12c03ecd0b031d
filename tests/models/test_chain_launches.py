"""Which launches a model's chain gets, with and without a table."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lite_llama.errors import ConfigError
from lite_llama.kernel_lib import tuned
from lite_llama.kernel_lib.gpu import H200
from lite_llama.models.chain_launches import (
    ChainLaunches,
    choose_launches,
    find_launches,
    read_launches,
    settle_attention,
    tuned_shape,
    weight_shapes,
    without_early_loads,
    without_overlap,
)
from tests.models.test_decode_chain import BASE


def other_launches() -> ChainLaunches:
    """What the defaults would never be."""
    chosen = settle_attention(
        choose_launches(BASE, 1, torch.bfloat16), BASE, (1, torch.bfloat16, 64), H200
    )
    return replace(
        chosen,
        down=replace(chosen.down, block_n=4, overlap=0.6, preload=False, prefetch=0.4),
        attention_overlap=-1.0,
        carveout=43,
    )


def write_table(folder: Path, launches: ChainLaunches, attention_kernel: str | None = None) -> Path:
    entry: dict[str, Any] = {
        "shape": tuned_shape(BASE), "dtype": "bfloat16", "batch": 1,
        "kernels": tuned.kernel_version(tuned.PRODUCTS),
        "attention_kernel": attention_kernel or tuned.kernel_version(tuned.ATTENTION),
        "sites": asdict(launches), "measured": {},
    }  # fmt: skip
    folder.mkdir(parents=True)
    path = folder / "nvidia-h200.json"
    path.write_text(json.dumps({"gpu": "NVIDIA H200", "entries": [entry]}))
    return path


def test_attention_of_another_kernel_is_launched_as_its_operator_chooses(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    given = other_launches()
    assert given.attention is not None
    write_table(tuned.user_folder(), given, attention_kernel="0123456789ab")
    found = find_launches(BASE, torch.bfloat16, 1, H200)
    assert found == replace(given, attention=None, attention_overlap=0.0)


def test_a_table_changes_the_launches_and_its_removal_brings_the_defaults_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    defaults = choose_launches(BASE, 1, torch.bfloat16)
    assert find_launches(BASE, torch.bfloat16, 1, H200) == defaults
    path = write_table(tuned.user_folder(), other_launches())
    assert find_launches(BASE, torch.bfloat16, 1, H200) == other_launches() != defaults
    assert find_launches(BASE, torch.bfloat16, 2, H200) == choose_launches(BASE, 2, torch.bfloat16)
    assert find_launches(replace(BASE, qkv_bias=True), torch.bfloat16, 1, H200) == defaults
    path.unlink()
    assert find_launches(BASE, torch.bfloat16, 1, H200) == defaults


def test_launches_survive_json_and_a_missing_or_unknown_site_is_named() -> None:
    sites = json.loads(json.dumps(asdict(other_launches())))
    assert read_launches(sites, "x") == other_launches()
    assert read_launches({**sites, "attention": None}, "x").attention is None
    with pytest.raises(ConfigError, match=r"^x\.attention_overlap is True, expected -1, 0 or 1; "):
        read_launches({**sites, "attention_overlap": True}, "x")
    for percent in (101, True):
        wanted = rf"^x\.carveout is {percent}, expected an integer from -1 to 100; "
        with pytest.raises(ConfigError, match=wanted):
            read_launches({**sites, "carveout": percent}, "x")
    with pytest.raises(ConfigError, match=r"^x\.up is unknown"):
        read_launches({**sites, "up": sites["o"]}, "x")
    del sites["carveout"]  # as in tables of before
    assert read_launches(sites, "x") == replace(other_launches(), carveout=-1)
    del sites["head"]
    with pytest.raises(ConfigError, match=r"^x\.head is missing"):
        read_launches(sites, "x")


def test_weight_shapes_count_pairs_where_programs_own_pairs() -> None:
    assert weight_shapes(BASE) == {
        "qkv": (80, 48), "o": (48, 96), "gate_up": (80, 48), "down": (48, 80), "head": (97, 48),
    }  # fmt: skip


def test_the_rungs_between_plain_and_tuned_launches_change_modes_only() -> None:
    chain = other_launches()
    plain, bare = without_overlap(chain), without_early_loads(chain)
    assert (plain.attention_overlap, bare.attention_overlap) == (-1.0, 0.0)
    for site in weight_shapes(BASE):
        own = getattr(chain, site)
        assert getattr(plain, site) == replace(own, overlap=-1.0)
        assert getattr(bare, site) == replace(own, overlap=0.0, preload=False, prefetch=0.0)


def test_a_wide_down_projection_of_one_token_is_read_in_whole_rows() -> None:
    wide = replace(BASE, hidden_size=896, intermediate_size=4864)
    chosen = choose_launches(wide, 1, torch.bfloat16).down
    assert (chosen.block_n, chosen.block_k, chosen.num_warps) == (4, 4096, 16)
    assert (
        choose_launches(replace(wide, intermediate_size=3000), 1, torch.bfloat16).down.num_warps
        < 16
    )
    assert choose_launches(wide, 2, torch.bfloat16).down.num_warps < 16


def test_one_token_of_a_small_model_is_decoded_by_rings_as_two_are() -> None:
    small = replace(
        BASE, hidden_size=2048, num_q_heads=32, num_kv_heads=8, head_dim=64, intermediate_size=8192,
        vocab_size=1024,
    )  # fmt: skip
    one, two = (choose_launches(small, count, torch.bfloat16) for count in (1, 2))
    assert one == two
    assert one.all_rings(small, torch.bfloat16, H200)
    # Rings hold 16-bit weights, whole tiles of every row; wider models were not measured.
    for config, weights in (
        (small, torch.float32),
        (replace(small, hidden_size=2176), torch.bfloat16),
        (replace(small, intermediate_size=8192 + 128), torch.bfloat16),
        (replace(small, hidden_size=4096), torch.bfloat16),
    ):
        launches = choose_launches(config, 1, weights)
        assert not any(getattr(launches, site).num_stages for site in weight_shapes(config))
