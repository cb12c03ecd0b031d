"""The rows of the matrix that need a GPU: `make gpu`. Random weights in the shape of a 1B model."""

import asyncio
import gc
import os
import statistics
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from lite_llama.engine.engine import Engine
from lite_llama.engine.runner import Runner
from lite_llama.engine.sampling_params import SamplingParams
from lite_llama.llm import LLM
from lite_llama.server.config import ServeConfig
from lite_llama.text.grammar import GrammarCompiler, json_schema_spec
from tests.engine.host_load import closed_loop
from tests.server import front_load
from tests.server.preset import EOS
from tests.server.preset_engine import PresetLLM
from tests.server.servers import (
    LocalServer,
    ServerProcess,
    check_death,
    server_process,
    wait_until,
)
from tests.server.test_faults import hold_a_round

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

NUM_REQUESTS = 512
ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with PresetLLM() as loaded:
        yield loaded


def steady_rate(times: Sequence[float]) -> float:
    """Events a second in the middle half of them, where all clients are at work."""
    ordered = sorted(times)
    quarter = len(ordered) // 4
    return 2 * quarter / (ordered[3 * quarter] - ordered[quarter])


PARAMS = SamplingParams(temperature=0, max_tokens=front_load.NUM_TOKENS, ignore_eos=True)


def prompts(llm: LLM, numbers: Sequence[int]) -> list[list[int]]:
    """What the model is given of these questions of front_load."""
    return [llm.text.encode_chat(front_load.question(number)) for number in numbers]


def ttfts_s(engine: Engine, asked: Sequence[float], questions: Sequence[list[int]]) -> list[float]:
    """Times to first tokens of questions that come at these moments."""
    first, begun = asked[0], time.perf_counter()
    came = {str(number): begun + moment - first for number, moment in enumerate(asked)}
    waiting = deque(zip(came, questions, strict=True))
    found: list[float] = []
    while waiting or engine.has_requests:
        while waiting and came[waiting[0][0]] <= time.perf_counter():
            engine.add(*waiting.popleft(), PARAMS, cache_salt="open loop")
        for output in engine.step():
            if output.request_id in came:
                found.append(time.perf_counter() - came.pop(output.request_id))
    return found


@dataclass(frozen=True)
class Alone:
    """What the engine does by itself, in this process."""

    plain: float  # tokens a second of 32 sequences
    constrained: float  # the same under a schema
    tokens_per_s: float  # of 64 sequences at a time


@pytest.fixture(scope="module")
def alone(llm: LLM) -> Alone:
    schema = {
        "type": "array",
        "items": {"type": "integer", "minimum": 0, "maximum": 99},
        "minItems": 400,
        "maxItems": 400,
    }
    compiler = GrammarCompiler(llm.tokenizer, llm.model_config.vocab_size, [EOS])
    make = asyncio.run(compiler.compile(json_schema_spec(schema, "x")))

    def rate(*, constrained: bool) -> float:
        times: list[float] = []
        for number in range(32):
            params = SamplingParams(max_tokens=256, seed=number, ignore_eos=not constrained)
            grammar = make() if constrained else None
            llm.engine.add(str(number), list(range(100, 200)), params, grammar=grammar)
        while llm.engine.has_requests:
            drawn = llm.engine.step()
            times += [time.perf_counter()] * len(drawn)
        assert len(times) == 32 * 256  # the schema's list cannot end before that
        return steady_rate(times)

    rates: dict[bool, list[float]] = {False: [], True: []}
    for _ in range(4):
        for kind, found in rates.items():
            found.append(rate(constrained=kind))
    questions = prompts(llm, range(NUM_REQUESTS))
    closed_loop(llm.engine, questions, 256, PARAMS)
    closed_loop(llm.engine, questions[:64], 64, PARAMS)
    medians = [statistics.median(found[1:]) for found in rates.values()]
    return Alone(*medians, steady_rate(closed_loop(llm.engine, questions, 64, PARAMS)))


@contextmanager
def local_server(llm: LLM) -> Iterator[LocalServer]:
    for left_by_a_failure in list(llm.engine._live):
        llm.engine.abort(left_by_a_failure)
    running = LocalServer(llm, ServeConfig(max_num_queued_reqs=600, request_timeout_s=120))
    try:
        yield running
        wait_until(running.is_idle)
    finally:
        running.stop()


@pytest.fixture
def server(llm: LLM, alone: Alone) -> Iterator[LocalServer]:
    """One a test, as some of them may end it, around the engine of this process, which is warm."""
    del alone
    with local_server(llm) as running:
        yield running


@contextmanager
def preset_server_process(folder: Path, *flags: str) -> Iterator[ServerProcess]:
    """Both processes of `lite-llama serve`, with random weights."""
    environment = {"PYTHONPATH": os.pathsep.join([str(folder), str(ROOT), *sys.path])}
    main = "tests.server.preset_server"
    with server_process(folder, *flags, main=main, environment=environment) as running:
        yield running


@pytest.fixture(scope="module")
def served(alone: Alone, tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """Warm, beside the engine of this process, which has been measured and now does nothing."""
    del alone
    folder = tmp_path_factory.mktemp("served")
    with preset_server_process(folder, "--tell-lags") as running:
        front_load.load(running, 256, 2 * NUM_REQUESTS, first=100_000)
        front_load.load(running, 64, NUM_REQUESTS, first=200_000)
        yield running


def test_ids_outside_the_vocabulary_change_nothing(server: LocalServer, llm: LLM) -> None:
    """A4."""
    vocab = llm.model_config.vocab_size
    plain = {"prompt": [1, 2, 3], "max_tokens": 4, "temperature": 0, "logprobs": 3}

    def ask(**fields: Any) -> Any:
        return server.post("/v1/completions", {**plain, **fields})

    before = ask(cache_salt="a").json()["choices"]
    for bad in (-1, vocab, 2**31, 2**63):
        for fields in ({"logit_bias": {str(bad): 1}}, {"stop_token_ids": [bad]}, {"prompt": [bad]}):
            assert ask(**fields).status_code == 400, fields
    assert ask(cache_salt="b").json()["choices"] == before


def test_disconnects_leak_no_blocks_of_a_gpu(
    server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L1 and L2."""
    step = Engine.step

    def checking(engine: Engine) -> Any:
        outputs = step(engine)
        engine.scheduler.pool.check()
        return outputs

    monkeypatch.setattr(Engine, "step", checking)
    for number in range(3):
        codes = asyncio.run(
            hold_a_round(server.url, number, num=500, within_s=1.0, stream=bool(number % 2))
        )
        assert set(codes) <= {0, 200}
        assert codes.count(200) > 300
        wait_until(server.is_idle, 1)


def test_out_of_memory_fails_its_batch_only(
    server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L11."""
    run_step, scheduler = Runner.run, server.llm.engine.scheduler
    faults = iter([True])

    def greedy(*arguments: Any, **options: Any) -> Any:
        if next(faults, False):
            torch.empty(1 << 50, dtype=torch.uint8, device="cuda")
        return run_step(*arguments, **options)

    monkeypatch.setattr(Runner, "run", greedy)
    budget = scheduler.max_num_batched_tokens
    monkeypatch.setattr(scheduler, "max_num_batched_tokens", budget)
    assert server.chat("Hi", max_tokens=4).status_code == 500
    assert scheduler.max_num_batched_tokens == max(scheduler.max_num_seqs, budget // 2)
    assert server.chat("Hi", max_tokens=4).status_code == 200


def test_a_schema_costs_few_tokens_a_second(alone: Alone) -> None:
    """S4: 32 sequences of 256 tokens."""
    loss = 1 - alone.constrained / alone.plain
    print(
        f"S4: {alone.plain:.0f} tokens/s, {alone.constrained:.0f} under a schema: {loss:.1%} less"
    )
    assert loss <= 0.05


def test_the_server_costs_little_over_the_engine(
    served: ServerProcess, alone: Alone, llm: LLM
) -> None:
    """64 closed-loop clients: <= 5 % of tokens/s, <= 1.5 ms on the median TTFT.

    The engine's TTFT is that of the same questions at the same moments.
    """
    seen = front_load.load(served, 64, 4 * NUM_REQUESTS)
    moments, numbers = zip(*seen.asked, strict=True)
    bare_ttft_s = statistics.median(ttfts_s(llm.engine, moments, prompts(llm, numbers)))
    ttft_s = statistics.median(seen.ttft_s)
    loss = 1 - seen.tokens_per_s / alone.tokens_per_s
    print(f"overhead: {alone.tokens_per_s:.0f} tokens/s bare; served {seen}: {loss:.1%} less")
    print(f"TTFT p50 {bare_ttft_s * 1e3:.1f} ms bare, {ttft_s * 1e3:.1f} ms served")
    assert loss <= 0.05
    assert ttft_s - bare_ttft_s <= 1.5e-3


def test_256_streams_leave_the_loop_quick(served: ServerProcess) -> None:
    before = len(served.lags_s())
    wait_until(lambda: len(served.lags_s()) > before)  # the second that was under way
    seen = front_load.load(served, 256, 8 * NUM_REQUESTS, first=300_000)  # some seconds
    gaps, lags = sorted(seen.itl_s), sorted(seen.lags_s)
    assert len(lags) >= 200
    print(f"256 streams: {seen}")
    assert lags[int(len(lags) * 0.99)] <= 0.02
    assert gaps[int(len(gaps) * 0.99)] <= 3 * gaps[len(gaps) // 2]


def test_20_llms_give_back_their_gpu_memory() -> None:
    """L15. What the first leaves behind (the context, libraries, kernels) is where it starts."""
    free = []
    for number in range(20):
        with PresetLLM(num_blocks=512, max_num_seqs=4) as llm:
            llm.generate([list(range(1, 50))], SamplingParams(max_tokens=4, ignore_eos=True))
        del llm
        gc.collect()
        free.append(torch.cuda.mem_get_info()[0])
        assert number == 0 or abs(free[0] - free[-1]) < 50e6, free
    print(f"free after the first {free[0] / 1e6:.0f} MB, after the last {free[-1] / 1e6:.0f} MB")


ASSERTING = """
import sys, time, torch
from lite_llama.engine.engine import Engine
from tests.server.preset_engine import main
step, count = Engine.step, 0
def asserting(engine):
    global count
    count += bool(engine.scheduler.running)
    if count == 20:
        print('fault at', time.time(), file=sys.stderr, flush=True)
        torch.zeros(1, device='cuda')[torch.tensor([5], device='cuda')].sum().item()
    return step(engine)
Engine.step = asserting
"""


def test_a_device_assert_ends_the_process(tmp_path: Path) -> None:
    """L11: the device is lost, so it is as L7."""
    (tmp_path / "asserting_engine.py").write_text(ASSERTING)
    flags = ("--engine-main", "asserting_engine", "--max-num-seqs", "4", "--num-blocks", "512")
    with preset_server_process(tmp_path, *flags) as server:
        check_death(server, 0)
