"""Ranks that share a model, each a process, give what one process gives; and end together.

They exchange through gloo on the CPU. With GPUs: tests/server/test_gpu_tp.py.
"""

import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import psutil
import pytest
import torch
from gguf import GGMLQuantizationType as QType

from lite_llama import LLM, ConfigError, EngineError, SamplingParams
from lite_llama.engine import workers
from lite_llama.engine.config import EngineConfig, resolve
from lite_llama.engine.engine import Engine
from lite_llama.engine.request import StepOutput
from lite_llama.models.ranks import RankGroup
from tests.engine import rank_without_gpu
from tests.engine.test_look_ahead import KINDS, PROMPTS, Near, sampling
from tests.models import tiny

# What a float32 sum of another order may change.
TOLERANCE = 2e-4
SMALL: dict[str, Any] = {
    "device": "cpu",
    "dtype": "float32",
    "block_size": 8,
    "num_blocks": 24,
    "max_num_seqs": 6,
    "max_num_batched_tokens": 32,
}


@pytest.fixture(autouse=True, scope="module")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tiny.model("qwen2"), tmp_path_factory.mktemp("tiny"))


@pytest.fixture(scope="module")
def one(path: Path) -> Iterator[LLM]:
    with LLM(path, **SMALL) as llm:
        yield llm


@pytest.fixture(scope="module")
def two(path: Path) -> Iterator[LLM]:
    with LLM(path, tensor_parallel_size=2, **SMALL) as llm:
        yield llm


def ranks_of(llm: LLM) -> list[psutil.Process]:
    assert llm.engine._workers is not None
    return [psutil.Process(each.pid) for each in llm.engine._workers._processes._processes]


MODELS: dict[str, tuple[str, dict[str, Any], dict[str, QType] | None, str, float]] = {
    "llama, biases, tied": (
        "llama",
        {"attention_bias": True, "tie_word_embeddings": True},
        None,
        "float32",
        TOLERANCE,
    ),
    "internlm2": ("internlm2", {}, None, "float32", TOLERANCE),
    "qwen3, norms": ("qwen3", {"head_dim": 24}, None, "float32", TOLERANCE),
    "mistral, window, bfloat16": ("mistral", {"sliding_window": 7}, None, "bfloat16", 0.25),
    "quantised, decoded": ("llama", {}, {"": QType.Q4_1, "down": QType.Q8_0}, "float32", TOLERANCE),
    "quantised, as packed": ("llama", {}, {"": QType.Q4_1, "down": QType.Q8_0}, "auto", 0.25),
}


@pytest.mark.parametrize("name", MODELS)
def test_two_ranks_give_the_logits_of_one(tmp_path: Path, name: str) -> None:
    family, changes, formats, dtype, tolerance = MODELS[name]
    if formats is not None:
        model = tmp_path / "tiny.gguf"
        built = tiny.model(hidden_size=128, head_dim=32, intermediate_size=192, **changes)
        tiny.write_gguf(model, built, "llama", formats=formats)
    elif family == "internlm2":
        model = tiny.save_as_internlm2(tiny.model(**changes), tmp_path)
    else:
        model = tiny.save(tiny.model(family, **changes), tmp_path)
    ids = tiny.token_ids(40)
    found = []
    for size in (1, 2):
        with LLM(model, device="cpu", dtype=dtype, tensor_parallel_size=size) as llm:
            found.append(llm.logits(ids))
    assert found[0].std() > 0.5
    torch.testing.assert_close(found[1], found[0], atol=tolerance, rtol=0)


def test_nine_heads_on_three_ranks_know_the_capital_of_france() -> None:
    question = [{"role": "user", "content": "What is the capital of France?"}]
    params = SamplingParams(temperature=0, max_tokens=24)
    with LLM(device="cpu", max_model_len=256, tensor_parallel_size=3) as llm:
        [answer] = llm.chat(question, params)
        assert llm.engine.model.num_q_heads == 3
        assert len(ranks_of(llm)) == 2
    assert answer.outputs[0].text == "The capital of France is Paris."


def play(engine: Engine, salt: str, *, leaves: int = 0) -> list[StepOutput]:
    """Requests of every kind, more than fit into step and cache, the last one joining late."""
    kinds = [*KINDS, "greedy", "seeded"]
    outputs: list[StepOutput] = []

    def add(number: int) -> None:
        fields, constrained = KINDS[kinds[number]]
        prompt = tiny.token_ids(10 + 4 * number, seed=number)
        params = sampling(**{**fields, "max_tokens": 30 - number})
        if number == 8:
            params = replace(params, prompt_logprobs=2)
        grammar = Near() if constrained else None
        engine.add(str(number), prompt, params, cache_salt=salt, grammar=grammar)

    for number in range(len(kinds) - 1):
        add(number)
    steps = 0
    while engine.has_requests:
        steps += 1
        if steps == 5:
            add(len(kinds) - 1)
        if steps == leaves:
            engine.abort("2")
        outputs += engine.step()
    engine.scheduler.pool.check()
    assert engine.scheduler.pool.num_used == 0
    return sorted(outputs, key=lambda output: output.request_id)


def rounded(output: StepOutput) -> StepOutput:
    def near(rows: Any) -> Any:
        if rows is None:
            return None
        return [
            msgspec.structs.replace(row, logprob=pytest.approx(row.logprob, abs=1e-3))
            for row in rows
        ]

    prompt = output.prompt_logprobs
    return msgspec.structs.replace(
        output,
        logprobs=near(output.logprobs),
        prompt_logprobs=None if prompt is None else [near(rows) for rows in prompt],
    )


@pytest.mark.parametrize("leaves", [0, 9])
def test_requests_of_every_kind_get_the_tokens_of_one_process(
    one: LLM, two: LLM, leaves: int
) -> None:
    """Greedy, seeded, with grammars, penalties and logprobs; chunked, preempted, aborted."""
    before = two.engine.scheduler.num_preemptions
    expected = play(one.engine, f"leaves {leaves}", leaves=leaves)
    given = play(two.engine, f"leaves {leaves}", leaves=leaves)
    assert two.engine.scheduler.num_preemptions > before
    assert [rounded(output) for output in given] == expected
    assert len({output.token_id for output in given}) > 50


def test_a_text_is_scored_between_the_steps_of_another(one: LLM, two: LLM) -> None:
    ids = tiny.token_ids(50)
    two.engine.add("running", PROMPTS[1], sampling())
    two.engine.step()
    torch.testing.assert_close(two.logits(ids), one.logits(ids), atol=TOLERANCE, rtol=0)
    drawn = [output.token_id for _ in range(13) for output in two.engine.step()]
    one.engine.add("running", PROMPTS[1], sampling())
    assert [output.token_id for _ in range(14) for output in one.engine.step()][1:] == drawn


def test_half_the_tokens_of_a_step_are_every_ranks_half(one: LLM, two: LLM) -> None:
    """What a server does when a step was out of memory (row L11)."""
    expected = one.generate([tiny.token_ids(60)], sampling())
    for llm in (one, two):
        llm.engine.scheduler.max_num_batched_tokens = 16
    try:
        given = two.generate([tiny.token_ids(60, seed=1)], sampling())
    finally:
        for llm in (one, two):
            llm.engine.scheduler.max_num_batched_tokens = 32
    assert given[0].outputs[0].token_ids == expected[0].outputs[0].token_ids


@pytest.fixture
def _heard_sigint() -> Iterator[None]:
    """Python raises KeyboardInterrupt, also where a shell has started it in the background."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_heard_sigint")
def test_ctrl_c_waits_for_the_end_of_a_step(two: LLM) -> None:
    """So that the ranks stay in step, and the next answer is right."""

    def answer() -> list[int]:
        return two.generate([PROMPTS[1]], sampling())[0].outputs[0].token_ids

    expected = answer()
    for delay_s in (0.01, 0.02, 0.03, 0.05):
        timer = threading.Timer(delay_s, os.kill, (os.getpid(), signal.SIGINT))
        timer.start()
        with pytest.raises(KeyboardInterrupt):  # noqa: PT012 - it may come anywhere in here
            while True:
                two.generate([PROMPTS[3]], sampling(max_tokens=40))
        timer.join()
        assert answer() == expected
    assert not two.engine.is_lost


def test_signals_to_a_whole_group_are_rank_0s_to_follow(two: LLM) -> None:
    """A supervisor sends SIGTERM to all; rank 0 drains, for which it needs the others."""
    [rank] = ranks_of(two)
    for number in (signal.SIGTERM, signal.SIGINT):
        rank.send_signal(number)
    before = two.generate([PROMPTS[1]], sampling())[0].outputs[0].token_ids
    time.sleep(0.1)
    assert two.generate([PROMPTS[1]], sampling())[0].outputs[0].token_ids == before


def test_a_second_model_of_ranks_is_refused(two: LLM, path: Path) -> None:
    assert not two.engine.is_lost
    with pytest.raises(ConfigError, match="in a process group already, limit one; close the other"):
        LLM(path, tensor_parallel_size=2, **SMALL)


@pytest.fixture(scope="module")
def ahead(two: LLM, path: Path) -> Iterator[LLM]:
    """Two ranks with a stand-in for the graphs of a GPU, so that steps are launched ahead."""
    two.close()  # a process is in one group
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.Tensor, "pin_memory", lambda tensor, *_: tensor)
        patch.setattr(workers, "_MAIN", rank_without_gpu.__name__)
        with LLM(path, tensor_parallel_size=2, **SMALL) as llm:
            runner = llm.engine.runner
            runner.graphs = rank_without_gpu.HostSharedGraphs(runner, llm.engine._workers)
            llm.engine.looks_ahead = True
            yield llm


def test_steps_launched_ahead_give_the_tokens_of_one_process(one: LLM, ahead: LLM) -> None:
    expected = play(one.engine, "ahead")
    given = play(ahead.engine, "ahead")
    assert [rounded(output) for output in given] == expected


@pytest.mark.parametrize(
    ("kinds", "sources"),
    [
        (["greedy", "greedy"], {"unread", "drawn in the graph"}),
        (["greedy", "seeded"], {"unread"}),
        (["greedy", "grammar"], {"unread"}),
    ],
)
def test_tokens_that_rank_0_has_not_read_reach_the_others(
    one: LLM, ahead: LLM, kinds: Sequence[str], sources: set[str]
) -> None:
    """A greedy token each rank draws itself, any other one is broadcast."""
    graphs = ahead.engine.runner.graphs
    assert isinstance(graphs, rank_without_gpu.HostSharedGraphs)
    graphs.log.clear()
    drawn = []
    for llm in (one, ahead):
        outputs: list[tuple[str, int]] = []
        for number, kind in enumerate(kinds):
            fields, constrained = KINDS[kind]
            grammar = Near() if constrained else None
            llm.engine.add(str(number), PROMPTS[number], sampling(**fields), grammar=grammar)
        while llm.engine.has_requests:
            outputs += [(output.request_id, output.token_id) for output in llm.engine.step()]
        drawn.append(outputs)
    assert drawn[1] == drawn[0]
    assert set(graphs.log) == sources
    assert len(graphs.log) > 10


@pytest.fixture
def fresh(ahead: LLM, path: Path) -> Iterator[LLM]:
    """Ranks to break."""
    ahead.close()
    with LLM(path, tensor_parallel_size=2, **SMALL) as llm:
        yield llm


def test_ranks_outlive_the_thread_that_made_them(one: LLM, ahead: LLM, path: Path) -> None:
    """The system ends them with the thread that started them, which is therefore not that one."""
    ahead.close()
    made: list[LLM] = []
    thread = threading.Thread(
        target=lambda: made.append(LLM(path, tensor_parallel_size=2, **SMALL))
    )
    thread.start()
    thread.join()
    with made[0] as llm:
        given = llm.generate([PROMPTS[1]], sampling())
    expected = one.generate([PROMPTS[1]], sampling())
    assert given[0].outputs[0].token_ids == expected[0].outputs[0].token_ids


@pytest.mark.parametrize("busy", [False, True])
def test_a_killed_rank_is_noticed_and_the_model_is_lost(fresh: LLM, *, busy: bool) -> None:
    [rank] = ranks_of(fresh)
    noticed = threading.Event()
    reasons: list[str] = []

    def note(reason: str) -> None:
        reasons.append(reason)
        noticed.set()

    fresh.engine.on_worker_lost(note)
    timer = threading.Timer(0.1, rank.kill)
    begun = time.monotonic()
    timer.start()
    said = rf"have stopped: rank 1 has died \(process {rank.pid}, exit code -9\); make another LLM"
    if busy:
        with pytest.raises(EngineError, match=said):  # noqa: PT012 - any of its steps
            while True:
                fresh.generate([PROMPTS[3]], sampling(max_tokens=40))
    assert noticed.wait(5)
    assert 0.1 <= time.monotonic() - begun < 1
    assert len(reasons) == 1
    with pytest.raises(EngineError, match=said):
        fresh.generate([PROMPTS[0]], sampling())
    fresh.engine.on_worker_lost(note)  # who asks late is told at once
    assert reasons == [reasons[0]] * 2


def test_a_stopped_rank_is_killed_by_close(fresh: LLM) -> None:
    [rank] = ranks_of(fresh)
    rank.suspend()
    begun = time.monotonic()
    fresh.close()
    assert time.monotonic() - begun < 1
    assert not rank.is_running()


def test_ranks_made_and_closed_leave_nothing_behind(
    ahead: LLM, path: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Row L15, with ranks."""
    ahead.close()
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    process = psutil.Process()
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    variables = dict(os.environ)  # noqa: TID251 - gloo is told its interface by one

    modes: list[int] = []
    join = RankGroup.join

    def looking(ranks: RankGroup, store: Path, device: torch.device) -> None:
        modes.append(store.parent.stat().st_mode & 0o777)
        join(ranks, store, device)

    monkeypatch.setattr(RankGroup, "join", looking)

    def make() -> None:
        modes.clear()
        with LLM(path, tensor_parallel_size=2, **SMALL) as llm:
            ranks = ranks_of(llm)
            assert modes == [0o700]
            assert not list(tmp_path.iterdir())
            llm.generate([PROMPTS[0]], sampling(max_tokens=2))
        assert not any(rank.is_running() for rank in ranks)
        assert not list(tmp_path.iterdir())

    make()
    children, num_files = set(process.children(recursive=True)), process.num_fds()
    for _ in range(3):
        make()
    assert set(process.children(recursive=True)) <= children
    assert process.num_fds() <= num_files
    assert not list(tmp_path.iterdir())
    assert {number: signal.getsignal(number) for number in signal.valid_signals()} == handlers
    assert dict(os.environ) == variables  # noqa: TID251
    assert not [each for each in threading.enumerate() if each.name == "ranks"]


def test_a_rank_that_cannot_load_says_why(ahead: LLM, path: Path, tmp_path: Path) -> None:
    ahead.close()
    model = LLM(path, **SMALL).model_config
    plan = resolve(EngineConfig(tensor_parallel_size=2, **SMALL), model)
    started = workers.Workers(plan, model=str(tmp_path / "gone"), preset=None)
    [process] = started._processes._processes
    with pytest.raises(EngineError, match=r"rank 1 failed: ModelNotFound: .*gone.* does not"):
        started.meet()
    started.close()
    assert process.returncode is not None


ORPHAN = """
import os, signal, sys, tempfile
from lite_llama import LLM
tempfile.tempdir = sys.argv[3]
llm = LLM(sys.argv[1], device="cpu", num_blocks=8, tensor_parallel_size=2)
[rank] = llm.engine._workers._processes._processes
if sys.argv[2] == "stopped":
    os.kill(rank.pid, signal.SIGSTOP)
print(rank.pid, flush=True)
if sys.argv[2] != "left open":
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.mark.parametrize("how", ["killed", "stopped", "left open"])
def test_ranks_end_with_their_parent(path: Path, tmp_path: Path, how: str) -> None:
    """Also while they are stopped, and when nobody has closed the LLM."""
    command = [sys.executable, "-c", ORPHAN, str(path), how, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    [pid] = re.findall(r"^\d+$", done.stdout, re.MULTILINE)
    assert done.returncode == (0 if how == "left open" else -9), done.stderr
    end = time.monotonic() + 2
    while psutil.pid_exists(int(pid)) and time.monotonic() < end:
        time.sleep(0.02)
    assert not psutil.pid_exists(int(pid))
    assert not list(tmp_path.iterdir())
