"""Tables of tuned launches: which entry is taken, what is passed over, what is refused."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest

from lite_llama.errors import ConfigError
from lite_llama.kernel_lib import tuned
from lite_llama.kernel_lib.gemv_launch import GemvLaunch
from lite_llama.kernel_lib.gpu import B200, H200

SHAPE = {"hidden_size": 64, "num_layers": 2}


def entry(**changes: Any) -> dict[str, Any]:
    return {
        "shape": SHAPE, "dtype": "bfloat16", "batch": 1,
        "kernels": tuned.kernel_version(tuned.PRODUCTS), "attention_kernel": "0123456789ab",
        "sites": {"o": asdict(GemvLaunch(2, 512, 4))}, "measured": {}, **changes,
    }  # fmt: skip


def write(folder: Path, *entries: dict[str, Any], name: str = "nvidia-h200.json") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / name
    path.write_text(json.dumps({"gpu": "NVIDIA H200", "entries": entries}))
    return path


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """(the user's, the shipped) folder, both empty."""
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(tuned, "SHIPPED", tmp_path / "shipped")
    return tuned.user_folder(), tuned.SHIPPED


def test_an_entry_is_found_by_gpu_shape_dtype_and_batch(folders: tuple[Path, Path]) -> None:
    assert tuned.find(H200, SHAPE, "bfloat16", 1) is None
    write(folders[1], entry(), entry(batch=4))
    found = tuned.find(H200, SHAPE, "bfloat16", 1)
    assert found is not None
    assert found.sites == {"o": asdict(GemvLaunch(2, 512, 4))}
    assert found.where == f"{folders[1]}/nvidia-h200.json: entries[0]"
    assert tuned.find(B200, SHAPE, "bfloat16", 1) is None
    assert tuned.find(H200, {**SHAPE, "num_layers": 3}, "bfloat16", 1) is None
    assert tuned.find(H200, SHAPE, "float16", 1) is None


def test_a_batch_between_two_buckets_takes_the_larger(folders: tuple[Path, Path]) -> None:
    write(folders[1], entry(), entry(batch=4), entry(batch=8))
    batches = {n: tuned.find(H200, SHAPE, "bfloat16", n) for n in (1, 2, 3, 4, 5, 8, 9, 17)}
    assert {n: found and found.batch for n, found in batches.items()} == {
        1: 1, 2: 4, 3: 4, 4: 4, 5: 8, 8: 8, 9: None, 17: None,
    }  # fmt: skip


def test_from_two_tokens_on_a_larger_batch_serves(folders: tuple[Path, Path]) -> None:
    write(folders[1], entry(batch=8))
    batches = {n: tuned.find(H200, SHAPE, "bfloat16", n) for n in (1, 2, 3, 4, 8)}
    assert {n: found and found.batch for n, found in batches.items()} == {
        1: None, 2: 8, 3: 8, 4: 8, 8: 8,
    }  # fmt: skip


def test_the_users_table_comes_before_the_shipped_one(folders: tuple[Path, Path]) -> None:
    user, shipped = folders
    write(shipped, entry())
    write(user, entry(sites={"mine": 1}))
    found = tuned.find(H200, SHAPE, "bfloat16", 1)
    assert found is not None
    assert found.sites == {"mine": 1}


def test_an_entry_of_other_kernels_is_passed_over(folders: tuple[Path, Path]) -> None:
    user, shipped = folders
    write(user, entry(kernels="0123456789ab"))
    assert tuned.find(H200, SHAPE, "bfloat16", 1) is None
    write(shipped, entry())
    found = tuned.find(H200, SHAPE, "bfloat16", 1)
    assert found is not None
    assert found.where.startswith(str(shipped))


@pytest.mark.parametrize(
    ("change", "key"),
    [
        ({"batch": "1"}, r"entries\[0\]\.batch is '1'"),
        ({"sites": []}, r"entries\[0\]\.sites is \[\]"),
        ({"kernels": None}, r"entries\[0\]\.kernels is None"),
        ({"attention_kernel": 1}, r"entries\[0\]\.attention_kernel is 1"),
    ],
)
def test_a_malformed_entry_is_refused_by_file_and_key(
    folders: tuple[Path, Path], change: dict[str, Any], key: str
) -> None:
    write(folders[0], entry(**change))
    with pytest.raises(ConfigError, match=rf"nvidia-h200\.json: {key}, expected"):
        tuned.find(H200, SHAPE, "bfloat16", 1)


@pytest.mark.parametrize("text", ["", "{", "[]", '"x"', '{"entries": 3}', "\x00"])
def test_what_is_no_table_is_refused_by_file(folders: tuple[Path, Path], text: str) -> None:
    path = write(folders[0])
    path.write_text(text)
    with pytest.raises(ConfigError, match=str(path)):
        tuned.find(H200, SHAPE, "bfloat16", 1)


@pytest.mark.parametrize(
    ("field", "value", "expected"),
    [
        ("block_n", 3, "a power of two"),
        ("block_k", "512", "an integer"),
        ("block_k", True, "an integer"),
        ("num_warps", 0, "an integer from 1"),
        ("num_stages", -1, "an integer from 0"),
        ("overlap", 1.5, "a number from -1 to 1"),
        ("preload", 1, "true or false"),
        ("colour", 1, "one of block_n"),
        ("block_n", None, "an integer"),
    ],
)
def test_a_launch_is_read_field_by_field(field: str, value: Any, expected: str) -> None:
    good = asdict(GemvLaunch(2, 512, 4, overlap=0.2))
    assert tuned.launch(GemvLaunch, good, "x") == GemvLaunch(2, 512, 4, overlap=0.2)
    with pytest.raises(ConfigError, match=rf"^x\.{field} is {value!r}, expected {expected}"):
        tuned.launch(GemvLaunch, {**good, field: value}, "x")


def test_a_field_with_a_default_may_be_missing_and_one_without_may_not() -> None:
    assert tuned.launch(GemvLaunch, {"block_n": 1, "block_k": 64, "num_warps": 1}, "x") == (
        GemvLaunch(1, 64, 1)
    )
    with pytest.raises(ConfigError, match=r"^x\.num_warps is None, expected a value"):
        tuned.launch(GemvLaunch, {"block_n": 1, "block_k": 64}, "x")


def test_the_kernel_version_follows_the_code_and_not_its_comments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tuned, "_PACKAGE", tmp_path)
    source = tmp_path / "kernel_lib/decode_gemv.py"
    source.parent.mkdir()

    def version(text: str) -> str:
        source.write_text(text)
        return tuned.kernel_version.__wrapped__(tuned.PRODUCTS)

    first = version("if a:\n    b = 1\n    c = 2\n")
    assert version("# why\nif a:\n\n    b = 1  # note\n    c  =  2\n") == first
    assert version("if a:\n    b = 1\nc = 2\n") != first
    assert version("if a:\n    b = 1\n    c = 3\n") != first


def test_the_kernel_versions_cover_every_kernel_of_the_chain() -> None:
    root, patterns = tuned.SHIPPED.parent, tuned.PRODUCTS + tuned.ATTENTION
    found = {str(p.relative_to(root)) for pattern in patterns for p in root.glob(pattern)}
    assert found >= {
        "kernel_lib/decode_gemv.py", "ops/norm_rope_write/kernel.py",
        "ops/attention_decode/kernel.py", "ops/linear_add/kernel.py",
        "ops/norm_qkv/kernel.py", "ops/norm_gate_up/kernel.py", "ops/norm_linear/kernel.py",
    }  # fmt: skip


def test_shipped_tables_are_sound_and_of_the_present_kernels() -> None:
    from lite_llama.models.chain_launches import read_launches

    for path in tuned.SHIPPED.glob("*.json"):
        entries = tuned.read(path)
        assert entries, path
        for found in entries:
            read_launches(found.sites, f"{found.where}.sites")
        stale = [found.where for found in entries if found.is_stale]
        assert not stale, (
            f"{path.name}: {len(stale)} of {len(entries)} entries were tuned for other kernels, so "
            f"the engine takes its defaults; run `lite-llama tune` on that GPU: {stale}"
        )
