"""What a search leaves behind: tables on the terminal, the tuned table and the progress file."""

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rich.table import Table

from lite_llama.errors import ConfigError
from lite_llama.kernel_lib import tuned
from lite_llama.kernel_lib.gemv_launch import GemvLaunch
from lite_llama.models.chain_launches import ChainLaunches, read_launches
from lite_llama.ops.attention_decode.launch import Launch
from lite_llama.tuning.search import State, Timing, Trial
from lite_llama.tuning.space import AttentionSite, Carveout, Site, describe, get

_TOP = 10
_TIMING_FIELDS = ("ms", "ratio", "low", "high", "stopped")


def top_table(stage: str, trials: Sequence[Trial], best: ChainLaunches) -> Table:
    """The ten best of a stage, and how many were rejected."""
    timed = sorted((trial for trial in trials if trial.timing), key=lambda trial: trial.ratio)
    rejected = [trial for trial in trials if trial.timing is None]
    table = Table(title=f"{stage}: {len(timed)} timed, {len(rejected)} rejected", title_style="")
    for name in ("", "launch", "ms a step", "of the incumbent's", "verdict"):
        table.add_column(name)
    for trial in timed[:_TOP]:
        taken = all(get(best, site) == value for site, value in trial.values.items())
        launch = "; ".join(describe(value) for value in trial.values.values())
        table.add_row("*" if taken else "", launch, *_cells(trial.timing))
    reasons: dict[str, int] = {}
    for trial in rejected:
        reasons[trial.rejection] = reasons.get(trial.rejection, 0) + 1
    for reason, count in reasons.items():
        table.add_row("", f"{count} rejected", "", "", reason)
    return table


def _cells(timing: Timing | None) -> tuple[str, str, str]:
    if timing is None or math.isnan(timing.ms):
        return "", "1", "incumbent"
    spread = f"{timing.ratio:.4f} [{timing.low:.4f}, {timing.high:.4f}]"
    return f"{timing.ms:.4f}", spread, "given up" if timing.stopped else timing.verdict


def stage_line(size: int, state: State) -> str:
    """One line about the stage that has just ended."""
    stage = state.done[-1]
    own = [trial for trial in state.trials if trial.stage == stage]
    rejected = sum(trial.timing is None for trial in own)
    sites = dict.fromkeys(site for trial in own for site in trial.values)
    now = "; ".join(describe(get(state.best, site)) for site in sites)
    return f"batch {size}, {stage}: {len(own)} chains, {rejected} rejected; now {now}"


def best_table(sites: Sequence[str], best: ChainLaunches, comparisons: dict[str, Timing]) -> Table:
    """The launch of each site, and the whole chain beside the chains it was compared with."""
    table = Table(title="best", title_style="")
    for name in ("site", "launch"):
        table.add_column(name)
    for site in sites:
        table.add_row(site, describe(get(best, site)))
    for name, timing in comparisons.items():
        ms, spread, _ = _cells(timing)
        table.add_row(name, f"{ms} ms a step, {spread} of the best's")
    return table


def measured(comparisons: Mapping[str, Timing]) -> dict[str, Any]:
    """The figures of an entry: milliseconds a step, and the ratio to the tuned chain."""
    return {
        name: {
            "ms": round(timing.ms, 5),
            "of_tuned": [round(x, 5) for x in (timing.low, timing.ratio, timing.high)],
        }
        for name, timing in comparisons.items()
    }


def write_entry(path: Path, gpu: str, entry: Mapping[str, Any]) -> None:
    """Put an entry into a table in place of one of the same shape, dtype and batch."""
    kept: list[Any] = []
    if path.exists():
        tuned.read(path)  # a table that cannot be read is not written over
        kept = json.loads(path.read_text(encoding="utf-8"))["entries"]
    same = ("shape", "dtype", "batch")
    kept = [old for old in kept if any(old[key] != entry[key] for key in same)]
    _write(path, {"gpu": gpu, "entries": [*kept, entry]})


def progress_path(output: Path) -> Path:
    """The progress file of a table."""
    return output.with_suffix(".progress.json")


def read_progress(path: Path, key: Mapping[str, Any]) -> State | None:
    """The state that a search of this key left, None without one; ConfigError if malformed."""
    if not path.exists():
        return None
    try:
        saved = json.loads(path.read_text(encoding="utf-8"))
        return _state(saved["state"], f"{path}: state") if saved["key"] == key else None
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{path} is not a progress file ({error!r}); delete it") from None


def write_progress(path: Path, key: Mapping[str, Any], state: State) -> None:
    """Save a state, in place of any other search's."""
    trials = [
        {
            "stage": trial.stage,
            "values": {site: asdict(value) for site, value in trial.values.items()},
            "timing": trial.timing and asdict(trial.timing),
            "rejection": trial.rejection,
        }
        for trial in state.trials
    ]
    saved = {"best": asdict(state.best), "done": state.done, "trials": trials}
    _write(path, {"key": key, "state": saved})


def _state(saved: Mapping[str, Any], where: str) -> State:
    trials = [
        Trial(
            trial["stage"],
            {
                site: _site(site, value, f"{where}.trials[{i}].values.{site}")
                for site, value in trial["values"].items()
            },
            trial["timing"] and Timing(**{name: trial["timing"][name] for name in _TIMING_FIELDS}),
            trial["rejection"],
        )
        for i, trial in enumerate(saved["trials"])
    ]
    best = read_launches(saved["best"], f"{where}.best")
    return State(best, [str(name) for name in saved["done"]], trials)


def _site(site: str, value: Mapping[str, Any], where: str) -> Site:
    if site == "carveout":
        return Carveout(int(value["percent"]))
    if site != "attention":
        return tuned.launch(GemvLaunch, value, where)
    return AttentionSite(tuned.launch(Launch, value["launch"], where), float(value["overlap"]))


def _write(path: Path, content: Any) -> None:
    """Write JSON whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_suffix(f".{os.getpid()}.tmp")
    draft.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    draft.replace(path)
