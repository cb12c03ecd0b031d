"""The whole of `lite-llama tune` on the CPU: real results, made-up times."""

import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from rich.console import Console
from torch import Tensor

from lite_llama.engine.config import EngineConfig, resolve
from lite_llama.engine.cuda_graphs import DecodeGraphs
from lite_llama.engine.device_table import DeviceTable
from lite_llama.engine.engine import Engine
from lite_llama.errors import ConfigError, EngineError
from lite_llama.kernel_lib import tuned
from lite_llama.kernel_lib.gpu import INTERPRETER
from lite_llama.models import decode_chain
from lite_llama.models.chain_launches import ChainLaunches, choose_launches, find_launches
from lite_llama.models.loader import random_decoder
from lite_llama.ops.advance_greedy.op import NUM_FIELDS
from lite_llama.tuning import measure, run
from lite_llama.tuning.measure import ChainMeter
from lite_llama.tuning.precompile import num_workers
from lite_llama.tuning.search import Rejected
from tests.models.test_decode_chain import BASE


class Step:
    """A recorded step that is computed anew at each replay."""

    def __init__(self, graphs: "CpuGraphs", size: int, launches: ChainLaunches | None) -> None:
        self.graphs, self.size, self.launches = graphs, size, launches
        self.logits = torch.zeros(size, BASE.vocab_size)

    def replay(self) -> None:
        self.logits.copy_(self.graphs.forward(self.size, self.launches))
        self.logits += self.graphs.error(self.launches)


class CpuGraphs(DecodeGraphs):
    """Graphs that record nothing; chains of `wrong_warps` at `down` are off by `wrong_by`."""

    wrong_warps, wrong_by = 2, 0.1

    def __init__(self, engine: Engine) -> None:
        self._decoder, self._kv_cache = engine.runner.decoder, engine.runner.kv_cache
        self.fields = torch.zeros((NUM_FIELDS, 8), dtype=torch.int64)
        self.table = DeviceTable(8, 16, torch.device("cpu"))
        self.logits = torch.zeros(8, BASE.vocab_size)

    def error(self, launches: ChainLaunches | None) -> float:
        wrong = launches is not None and launches.down.num_warps == self.wrong_warps
        return self.wrong_by if wrong else 0.0

    def record(self, size: int, launches: ChainLaunches | None) -> tuple[Step, Tensor]:  # type: ignore[override]
        step = Step(self, size, launches)
        return step, step.logits


def milliseconds(step: Step, _: int) -> float:
    """Two rows a program of `down` under dependent launch without preload are fast."""
    if step.launches is None:
        return 9.0
    down = step.launches.down
    if down.num_warps == CpuGraphs.wrong_warps:
        return 1.0  # wrong, and the fastest
    return 2.0 + (down.block_n != 2) / 10 + down.preload / 20 + (down.overlap < 0) / 5


@pytest.fixture
def engine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Engine:
    torch.manual_seed(2)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(decode_chain, "fits", lambda *_: True)
    monkeypatch.setattr(measure, "_timed", milliseconds)
    monkeypatch.setattr(measure, "attempt", partial(measure.attempt, wait=lambda: None))
    asked = EngineConfig(device="cpu", dtype="float32", max_num_seqs=8, max_model_len=64)
    plan = resolve(asked, BASE)
    decoder = random_decoder(BASE, plan.precision, device=plan.device, num_positions=64)
    built = Engine(decoder, plan, 32, frozenset())
    built.runner.graphs = CpuGraphs(built)
    return built


REQUEST = run.Request(batches=(1,), sites=("down",), context=9)


def test_what_is_found_is_written_and_what_the_engine_then_takes(
    engine: Engine,
) -> None:
    output = tuned.user_folder() / f"{INTERPRETER.slug}.json"
    console = Console(width=160, record=True, quiet=False)
    run.tune(engine, REQUEST, output, console)
    [entry] = json.loads(output.read_text())["entries"]
    found = find_launches(BASE, torch.float32, 1, INTERPRETER)
    assert found != choose_launches(BASE, 1, torch.float32)
    assert decode_chain.engine_launches(engine.runner.decoder, 1) == found
    assert (found.down.block_n, found.down.preload, found.down.overlap) == (2, False, 0.0)
    assert entry["measured"]["tuned"]["ms"] == pytest.approx(2.0)
    assert entry["measured"]["default tiles, plain launches"]["ms"] == pytest.approx(2.35)
    assert entry["measured"]["contexts"] == [9]
    text = console.export_text()
    assert "wrong result: NMSE" in text
    assert f"written to {output}" in text.replace("\n", "")
    assert [path.name for path in output.parent.iterdir()] == [output.name]


def test_wrong_chains_are_rejected_and_equal_arithmetic_must_be_bitwise_equal(
    engine: Engine,
) -> None:
    meter = ChainMeter(engine, 1, [9], {})
    start = replace(choose_launches(BASE, 1, torch.float32), attention=None)
    meter.calibrate(start)
    good = replace(start, down=replace(start.down, block_n=2))
    assert meter(good, start, longer=False).verdict == "faster"
    wrong = replace(start, down=replace(start.down, num_warps=2))
    with pytest.raises(Rejected, match="wrong result: NMSE"):
        meter(wrong, start, longer=False)
    # Within the tolerance, but no longer the bits of the same tile in another mode.
    graphs = engine.runner.graphs
    assert isinstance(graphs, CpuGraphs)
    meter._limits = [1.0] * 4
    graphs.wrong_warps = good.down.num_warps
    later = replace(good, down=replace(good.down, preload=False))
    with pytest.raises(Rejected, match="not bit for bit"):
        meter(later, start, longer=False)


def test_a_chain_whose_steps_change_when_repeated_is_rejected(engine: Engine) -> None:
    meter = ChainMeter(engine, 1, [9], {})
    start = choose_launches(BASE, 1, torch.float32)
    meter.calibrate(start)
    graphs = engine.runner.graphs
    assert isinstance(graphs, CpuGraphs)
    errors = iter(range(100))
    graphs.error = lambda _: next(errors) * 1e-7  # type: ignore[method-assign]
    with pytest.raises(Rejected, match="other results when its steps are repeated"):
        meter(replace(start, o=replace(start.o, overlap=1.0)), start, longer=False)


def test_defaults_that_are_wrong_end_the_search(engine: Engine) -> None:
    graphs = engine.runner.graphs
    assert isinstance(graphs, CpuGraphs)
    graphs.wrong_warps = choose_launches(BASE, 1, torch.float32).down.num_warps
    graphs.wrong_by = 1.0
    with pytest.raises(EngineError, match="differ from the separate operators"):
        ChainMeter(engine, 1, [9], {}).calibrate(choose_launches(BASE, 1, torch.float32))


def test_a_refused_chain_is_rejected_unmeasured(engine: Engine) -> None:
    start = choose_launches(BASE, 1, torch.float32)
    other = replace(start, o=replace(start.o, overlap=1.0))
    meter = ChainMeter(engine, 1, [9], {other: "OutOfResources: shared memory"})
    with pytest.raises(Rejected, match="OutOfResources"):
        meter(other, start, longer=False)


def test_a_request_is_checked() -> None:
    for change, word in (
        ({"batches": (3,)}, "--batch has 3"),
        ({"sites": ("mlp",)}, "--site has 'mlp'"),
        ({"context": 0}, "--context is 0"),
    ):
        with pytest.raises(ConfigError, match=word):
            replace(REQUEST, **change)  # type: ignore[arg-type]


def test_a_context_that_the_cache_does_not_hold_is_refused(engine: Engine, tmp_path: Path) -> None:
    request = replace(REQUEST, context=65)
    with pytest.raises(ConfigError, match="--context is 65, limit 64 at batch 1; lower it"):
        run.tune(engine, request, tmp_path / "table.json", Console(quiet=True))


def test_processes_are_as_many_as_cores_and_memory_allow(engine: Engine) -> None:
    count = partial(num_workers, BASE, engine.plan)
    assert count(16, 100 << 30) == 12
    assert count(4, 100 << 30) == 3
    assert count(16, 4 << 30) == 3
    assert count(1, 0) == 1
