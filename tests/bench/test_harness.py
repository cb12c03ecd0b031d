import json
from pathlib import Path

import pytest
import torch

from lite_llama.bench import latency, plot, record
from lite_llama.bench.harness import Case, Machine, WrongResult, run_case
from lite_llama.bench.ops import run
from lite_llama.bench.plot import draw
from lite_llama.engine.config import EngineConfig
from lite_llama.engine.request import StepOutput
from lite_llama.engine.sampling_params import SamplingParams
from lite_llama.errors import ConfigError
from tests.models import tiny

_CPU = Machine(torch.device("cpu"))


def _case(**changes: object) -> Case:
    fields = {
        "name": "4",
        "dtype": torch.float32,
        "make_inputs": lambda: (torch.ones(4),),
        "contenders": {"torch": torch.neg, "lite_llama": lambda x: -x},
        "num_bytes": 32,
    }
    return Case(**(fields | changes))  # type: ignore[arg-type]


def test_every_contender_is_timed_and_quantiles_are_ordered() -> None:
    timings = run_case(_case(), _CPU)
    assert list(timings) == ["torch", "lite_llama"]
    for timing in timings.values():
        assert 0 < timing.p20_us <= timing.median_us <= timing.p80_us


def test_a_wrong_contender_is_refused_before_it_is_timed() -> None:
    wrong = _case(contenders={"torch": torch.neg, "lite_llama": lambda x: x})
    with pytest.raises(WrongResult, match="lite_llama differs from torch"):
        run_case(wrong, _CPU)


def test_an_operator_in_place_is_judged_by_its_inputs() -> None:
    wrong = _case(contenders={"torch": torch.neg_, "lite_llama": lambda x: -x}, in_place=True)
    with pytest.raises(WrongResult):
        run_case(wrong, _CPU)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.int64, torch.bfloat16])
def test_results_of_every_dtype_are_compared(dtype: torch.dtype) -> None:
    one, two = (torch.full((4,), value).to(dtype) for value in (1.0, 2.0))
    assert run_case(_case(contenders={"torch": lambda _: one, "ours": lambda _: one}), _CPU)
    with pytest.raises(WrongResult, match="NMSE 1"):
        run_case(_case(contenders={"torch": lambda _: one, "ours": lambda _: two}), _CPU)


def test_roof_fraction_takes_the_slower_of_memory_and_arithmetic() -> None:
    machine = Machine(
        torch.device("cuda"), bytes_per_s=1e12, flops_per_s=1e14, copy_bytes_per_s=8e11
    )
    assert machine.roof_fraction(_case(num_bytes=10**6), 2.0) == pytest.approx(0.5)
    assert machine.roof_fraction(_case(num_flops=10**9), 20.0) == pytest.approx(0.5)
    assert machine.roof_fraction(_case(num_bytes=10**6, copies=True), 2.5) == pytest.approx(0.5)


def test_a_run_appends_complete_lines_that_the_plot_reads(tmp_path: Path) -> None:
    for _ in range(2):
        run.main(["add"], device="cpu", dtype="fp32", log=tmp_path)
    (log,) = tmp_path.glob("*.jsonl")
    lines = record.read(log)
    assert len({line["run"] for line in lines}) == 2
    wanted = {"bench", "case", "dtype", "engine", "median_us", "p20_us", "p80_us", "bytes"}
    wanted |= {"gpu", "driver", "torch", "triton", "commit", "run"}
    assert all(wanted <= line.keys() for line in lines)
    assert lines[0]["bench"] == "ops/add"
    assert lines[0]["torch"] == torch.__version__
    assert json.loads(log.read_text().splitlines()[0]) == lines[0]
    (picture,) = draw(log, tmp_path / "plots")
    assert picture.name == "add.png"
    assert picture.stat().st_size > 1000


def test_steps_of_one_sequence_are_drawn_beside_their_floors(tmp_path: Path) -> None:
    line = {"bench": "latency", "engine": "lite_llama", "floor_us": 500.0, "gpu": "a GPU"}
    log = tmp_path / "gpu.jsonl"
    cases = {"a b1 p128 g64": 900.0, "a b1 p128 g8": 700.0, "b b1 p4096 g8": 600.0, "a b2 p1 g1": 1}
    lines = [line | {"case": case, "median_us": median} for case, median in cases.items()]
    log.write_text("".join(json.dumps(each) + "\n" for each in lines))
    steps = plot._single_steps(record.read(log))
    assert {name: step["median_us"] for name, step in steps.items()} == {
        "b, prompt 4096": 600.0,
        "a": 700.0,
    }
    (picture,) = draw(log, tmp_path / "plots")
    assert picture.name == "latency.png"
    assert picture.stat().st_size > 1000


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"names": ["nothing"]}, "no benchmark of operator 'nothing'"),
        ({"dtype": "int3"}, "dtype is 'int3'"),
        ({"device": "cuda"}, "no CUDA device"),
    ],
)
def test_settings_that_cannot_run_are_refused(arguments: dict[str, object], message: str) -> None:
    if arguments.get("device") == "cuda" and torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    with pytest.raises(ConfigError, match=message):
        run.main(**({"device": "cpu"} | arguments))  # type: ignore[arg-type]


def test_a_latency_of_one_token_is_refused() -> None:
    engine = latency.build_engine(EngineConfig(device="cpu", max_model_len=64), None, None)
    prompts = latency.random_prompts(1, 4, engine.model.vocab_size)
    with pytest.raises(ConfigError, match="gen_len is 1, limit 2"):
        latency.measure_engine(engine, prompts, 1)
    assert len(latency.measure_engine(engine, prompts, 2)[2][0]) == 2


class Staggered:
    """Two prompts, the second computed two steps after the first; a step takes a second for each
    sequence that decodes."""

    def __init__(self) -> None:
        self.clock = 0.0
        self._left: dict[str, int] = {}

    def add(self, request_id: str, prompt: list[int], params: SamplingParams) -> None:
        del prompt
        self._left[request_id] = params.max_tokens or 0

    @property
    def has_requests(self) -> bool:
        return any(self._left.values())

    def step(self) -> list[StepOutput]:
        going = [one for one, left in self._left.items() if left and (one == "0" or self.clock > 1)]
        for one in going:
            self._left[one] -= 1
        self.clock += len(going)
        return [StepOutput(one, 7, None, None, None, None, 0) for one in going]


def test_steps_are_timed_while_all_sequences_decode(monkeypatch: pytest.MonkeyPatch) -> None:
    engine = Staggered()
    monkeypatch.setattr("lite_llama.bench.latency.time.perf_counter", lambda: engine.clock)
    first, each, tokens = latency.measure_engine(engine, [[1], [2]], 10)  # type: ignore[arg-type]
    assert (first, each) == (4.0, 2.0)
    assert tokens == [[7] * 10] * 2


def test_what_ranks_share_is_measured_like_what_one_process_has(tmp_path: Path) -> None:
    model = tiny.save(tiny.model(), tmp_path)
    drawn = []
    for size in (1, 2):
        asked = EngineConfig(device="cpu", dtype="float32", tensor_parallel_size=size)
        engine = latency.build_engine(asked, str(model), None)
        prompts = latency.random_prompts(2, 8, engine.model.vocab_size)
        drawn.append(latency.measure_engine(engine, prompts, 6)[2])
        engine.close()
    assert drawn[0] == drawn[1]


def test_a_draw_is_a_case_of_its_own() -> None:
    assert latency.draw_name(SamplingParams(temperature=0.0)) == ""
    assert latency.draw_name(SamplingParams(temperature=1.0)) == " t=1"
    drawn = SamplingParams(temperature=0.7, top_k=20, top_p=0.95)
    assert latency.draw_name(drawn) == " t=0.7 k=20 p=0.95"
