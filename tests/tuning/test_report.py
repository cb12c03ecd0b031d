"""Tables and progress files: what is written is read back."""

import json
from pathlib import Path

import pytest
from rich.console import Console

from lite_llama.errors import ConfigError
from lite_llama.kernel_lib import tuned
from lite_llama.tuning import report
from lite_llama.tuning.search import Search, State, Timing, Trial
from lite_llama.tuning.space import get
from tests.tuning.fakes import FakeMeter, space, start
from tests.tuning.test_search import separable

KEY = {"batch": 1, "contexts": [256]}


def searched() -> State:
    meter = FakeMeter(separable, wrong=lambda chain: chain.o.num_warps == 4)
    return Search(space(), meter, State(start())).run(["carveout", "attention", "o"])


def test_progress_is_read_back_as_it_was(tmp_path: Path) -> None:
    state, path = searched(), tmp_path / "t.progress.json"
    assert report.read_progress(path, KEY) is None
    report.write_progress(path, KEY, state)
    got = report.read_progress(path, KEY)
    assert got is not None
    assert (got.best, got.done) == (state.best, state.done)
    # The incumbent's own trial has no time, which equals nothing.
    assert [trial.values for trial in got.trials] == [trial.values for trial in state.trials]
    assert [t.ratio for t in got.trials] == [t.ratio for t in state.trials]
    assert [t.rejection for t in got.trials] == [t.rejection for t in state.trials]
    assert report.read_progress(path, {**KEY, "batch": 2}) is None


@pytest.mark.parametrize("text", ["", "[]", '{"key": {"batch": 1, "contexts": [256]}}'])
def test_a_malformed_progress_file_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t.progress.json"
    path.write_text(text)
    with pytest.raises(ConfigError, match=r"t\.progress\.json is not a progress file.*delete it"):
        report.read_progress(path, KEY)


def test_an_entry_replaces_the_one_of_its_shape_and_batch(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "gpu.json"
    base = {
        "shape": {"a": 1}, "dtype": "bfloat16", "kernels": "k", "attention_kernel": "a",
        "sites": {}, "measured": {},
    }  # fmt: skip
    for batch, kernels in ((1, "old"), (2, "old"), (1, "new")):
        report.write_entry(path, "GPU", {**base, "batch": batch, "kernels": kernels})
    assert [(e.batch, e.kernels) for e in tuned.read(path)] == [(2, "old"), (1, "new")]
    assert [file.name for file in path.parent.iterdir()] == ["gpu.json"]
    path.write_text("{")
    with pytest.raises(ConfigError, match="cannot be read as JSON"):
        report.write_entry(path, "GPU", {**base, "batch": 1})
    assert path.read_text() == "{"


def shown(table: object) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: PTH123, SIM115
    console.print(table)
    return console.export_text()


def test_the_top_ten_shows_the_taken_one_and_why_others_were_rejected() -> None:
    state = searched()
    own = [trial for trial in state.trials if trial.stage == "o"]
    text = shown(report.top_table("o", own, state.best))
    rejected = sum(trial.timing is None for trial in own)
    assert f"{len(own) - rejected} timed, {rejected} rejected" in text
    assert f"{rejected} rejected" in text
    assert "wrong result: NMSE 1" in text
    lines = [line for line in text.splitlines() if "faster" in line or "slower" in line]
    assert len(lines) <= 10
    [taken] = [line for line in text.splitlines() if "*" in line]
    assert "faster" in taken


def test_figures_of_an_entry_hold_spread_and_ratio() -> None:
    timing = Timing(0.70012345, 1.05, 1.04, 1.06)
    assert report.measured({"defaults": timing}) == {
        "defaults": {"ms": 0.70012, "of_tuned": [1.04, 1.05, 1.06]}
    }
    trial = Trial("o", {"o": get(start(), "o")}, timing)
    assert json.loads(json.dumps(trial.ratio)) == 1.05
