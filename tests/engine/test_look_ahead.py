"""A step computed before the host has read the one before gives the tokens of plain steps.

Recorded graphs need a GPU; here a stand-in computes what they would, so that the order of the
engine's work is tested anywhere.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
import torch
from torch import Tensor

from lite_llama import LLM, SamplingParams
from lite_llama.engine import engine as engine_module
from lite_llama.engine.engine import Engine
from lite_llama.engine.graph_draw import GraphDraw
from lite_llama.engine.head_graphs import HeadGraphs
from lite_llama.engine.prompt_graphs import PromptGraphs
from lite_llama.engine.request import Request, StepOutput
from lite_llama.engine.runner import Runner
from lite_llama.engine.sampler import Sampler
from lite_llama.models.inputs import ForwardBatch
from lite_llama.ops.advance_greedy.op import NUM_FIELDS
from tests.engine import mixed_requests
from tests.models import tiny

PROMPTS = [tiny.token_ids(length, seed=length) for length in (5, 23, 1, 40)]


class HostGraphs:
    """`DecodeGraphs` without graphs: its result, too, is padded, and overwritten by the next."""

    def __init__(self, runner: Runner, logits: Tensor) -> None:
        self._runner = runner
        self._logits = logits
        self.told = torch.empty(0, dtype=torch.int64)

    def launch(
        self,
        requests: list[Request],
        positions: list[int],
        token_ids: list[int] | Tensor,
        draw: GraphDraw | None,
    ) -> Tensor:
        size = self._runner.plan.block_size
        places = zip(requests, positions, strict=True)
        slots = [one.blocks[at // size] * size + at % size for one, at in places]
        width = max(len(one.blocks) for one in requests)
        table = [one.blocks + [0] * (width - len(one.blocks)) for one in requests]
        inputs = ForwardBatch(
            token_ids=torch.as_tensor(token_ids).clone(),
            positions=torch.tensor(positions),
            slot_mapping=torch.tensor(slots),
            block_table=torch.tensor(table, dtype=torch.int32),
            seq_lens=torch.tensor(positions, dtype=torch.int32) + 1,
            cu_seqlens_q=torch.zeros(1, dtype=torch.int32),
            num_decode_seqs=len(requests),
            max_q_len=0,
        )
        logits = self._runner.decoder.forward(inputs, self._runner.kv_cache)
        out = self._logits[: min(-(-len(requests) // 4) * 4, len(self._logits))]
        out[: len(requests)] = logits
        if draw is None:
            return out
        fields = torch.zeros(NUM_FIELDS, len(out), dtype=torch.int64)
        fields[3, : len(requests)] = inputs.seq_lens
        told = torch.zeros(2, len(out), dtype=torch.int64)
        draw.advance(out, fields, told)
        self.told = told[0]
        return fields[0, : len(requests)]


class HostRecording:
    """What a graph of `step` does: `result` is overwritten by each replay."""

    num_replays = 0

    def __init__(self, step: Callable[[], Tensor]) -> None:
        self._step = step
        self.result = step()

    def replay(self) -> None:
        HostRecording.num_replays += 1
        self.result.copy_(self._step())


def record(step: Callable[[], Tensor]) -> Any:
    """A stand-in for `recording.record`."""
    recording = HostRecording(step)
    return recording, recording.result


class Near:
    """A grammar that depends on the token before: the next one lies within 40 of it, in a ring."""

    def __init__(self, breaks_at: int | None = None) -> None:
        self._allowed = set(range(0, tiny.VOCAB, 2))
        self._left = breaks_at

    @staticmethod
    def fill_masks(grammars: dict[int, "Near"], words: Any) -> dict[int, str]:
        for row, grammar in grammars.items():
            words[row] = 0
            for token in grammar._allowed:
                words[row, token // 32] |= torch.tensor(1 << token % 32).int().item()
        return {row: "broken" for row, grammar in grammars.items() if grammar._left == 0}

    def accept(self, token_id: int) -> None:
        assert token_id in self._allowed
        self._allowed = {(token_id + step) % tiny.VOCAB for step in range(1, 40)}
        if self._left is not None:
            self._left -= 1


@pytest.fixture(scope="module")
def llm(tiny_path: Path) -> Iterator[LLM]:
    with LLM(tiny_path, dtype="float32", device="cpu", prefix_caching=False) as loaded:
        yield loaded


def sampling(**fields: Any) -> SamplingParams:
    return SamplingParams(**{"temperature": 0.0, "max_tokens": 14, "ignore_eos": True, **fields})


GREEDY = sampling()
KINDS: dict[str, tuple[dict[str, Any], bool]] = {
    "grammar": ({"ignore_eos": False}, True),
    "seeded grammar": ({"ignore_eos": False, "temperature": 1.5, "seed": 3}, True),
    "penalties": ({"repetition_penalty": 1.8, "frequency_penalty": 0.7}, False),
    "logprobs": ({"logprobs": 3, "temperature": 1.0, "seed": 4}, False),
    "min_tokens": ({"min_tokens": 8, "stop_token_ids": list(range(0, tiny.VOCAB, 5))}, False),
    "logit_bias": ({"logit_bias": dict.fromkeys(range(20, 26), 4.0)}, False),
    "seeded": ({"temperature": 1.3, "seed": 5, "top_k": 20}, False),
    "greedy": ({}, False),
}


def run(
    engine: Engine,
    kinds: Sequence[str],
    *,
    breaks_at: int | None = None,
    late: int = 0,
    leaves: int = 0,
) -> list[StepOutput]:
    """Outputs by request; the last joins at step `late`, the first is aborted at step `leaves`."""
    outputs: list[StepOutput] = []

    def add(number: int) -> None:
        fields, constrained = KINDS[kinds[number]]
        params = sampling(**{**fields, "max_tokens": 14 - 3 * number})
        grammar = Near(breaks_at) if constrained else None
        engine.add(str(number), PROMPTS[number], params, grammar=grammar)

    for number in range(len(kinds) - bool(late)):
        add(number)
    steps = 0
    while engine.has_requests:
        steps += 1
        if steps == late:
            add(len(kinds) - 1)
        if steps == leaves:
            engine.abort("0")
        outputs += engine.step()
    engine.scheduler.pool.check()
    assert engine.scheduler.pool.num_used == 0
    return sorted(outputs, key=lambda output: output.request_id)


def look_ahead(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Let the engine work as on a GPU; what it does, in order, from now on."""
    log: list[str] = []

    def note(where: Any, name: str, what: str) -> None:
        whole = getattr(where, name)

        def noting(*arguments: Any) -> Any:
            result = whole(*arguments)
            if result is not None:
                log.append(what)
            return result

        monkeypatch.setattr(where, name, noting)

    monkeypatch.setattr(engine, "looks_ahead", True)
    runner, rows, vocab = engine.runner, engine.plan.max_num_seqs, engine.model.vocab_size
    logits, plan = torch.zeros(rows, vocab), replace(engine.plan, enforce_eager=True)
    monkeypatch.setattr(runner, "graphs", HostGraphs(runner, logits))
    monkeypatch.setattr(runner, "heads", HeadGraphs(runner.decoder, plan, logits))
    drawing = Sampler(rows, vocab, torch.device("cpu"), record)
    monkeypatch.setattr(engine, "_sampler", drawing)
    note(engine, "_compute", "compute")
    note(engine, "_compute_ahead", "compute ahead")
    note(engine_module._ReadBack, "wait", "read")
    return log


def both(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, kinds: Sequence[str], **events: Any
) -> tuple[list[StepOutput], list[StepOutput], list[str]]:
    """What plain steps say, what steps that look ahead say, and the order of these."""
    plain = run(llm.engine, kinds, **events)
    log = look_ahead(llm.engine, monkeypatch)
    return plain, run(llm.engine, kinds, **events), log


def rounded(output: StepOutput) -> StepOutput:
    if output.logprobs is None:
        return output
    rows = [
        msgspec.structs.replace(row, logprob=pytest.approx(row.logprob, abs=1e-4))
        for row in output.logprobs
    ]
    return msgspec.structs.replace(output, logprobs=rows)


def all_ahead(num_steps: int) -> list[str]:
    """Of steps of which every one but the first is launched before the one before is read."""
    return ["compute", *["compute ahead", "read"] * (num_steps - 1), "read"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_computed_step_is_drawn_as_a_plain_one_is(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    replays = HostRecording.num_replays
    plain, ahead, log = both(llm, monkeypatch, [kind, "greedy"])
    assert ahead == plain
    assert len({output.token_id for output in plain}) > 8
    assert log == all_ahead(14)
    # Of 14; a free token is drawn within a step that is recorded, which a prompt's is not.
    recorded = {"greedy": 1, "seeded": 1, "min_tokens": 9}.get(kind, 14)
    assert HostRecording.num_replays - replays == recorded


@pytest.mark.parametrize(
    "events", [{}, {"late": 5}, {"leaves": 5}, {"late": 3, "leaves": 4}, {"breaks_at": 4}], ids=str
)
def test_requests_of_every_kind_may_join_leave_and_break(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, events: dict[str, int]
) -> None:
    kinds = ["seeded grammar", "penalties", "grammar", "logprobs"]
    plain, ahead, _ = both(llm, monkeypatch, kinds, **events)
    # A sum is rounded as its batch's size says, and who ends or joins does so a step apart.
    assert [rounded(output) for output in ahead] == plain
    broken = [output.error for output in plain if output.finish_reason == "error"]
    assert broken == (["broken"] * 2 if "breaks_at" in events else [])


@pytest.mark.parametrize("kind", ["grammar", "seeded", "greedy"])
def test_a_prompt_that_joins_is_computed_beside_tokens_that_are_not_read(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    plain, ahead, log = both(llm, monkeypatch, [kind, "greedy", "seeded"], late=4)
    assert [rounded(output) for output in ahead] == plain
    assert log == all_ahead(14)


@pytest.mark.parametrize("kind", ["grammar", "seeded", "greedy"])
def test_chunks_of_prompts_are_launched_ahead(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """With 8 tokens a step: 5 of the first prompt and 3 of the second, then 4 beside decoding."""
    monkeypatch.setattr(llm.engine.scheduler, "max_num_batched_tokens", 8)
    plain, ahead, log = both(llm, monkeypatch, [kind] * 4)
    assert [rounded(output) for output in ahead] == plain
    assert log == all_ahead(log.count("read"))
    assert log.count("read") > 18


def test_padded_steps_with_prompts_take_tokens_that_are_not_read(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    runner = llm.engine.runner
    plan = replace(runner.plan, enforce_eager=True)
    monkeypatch.setattr(runner, "prompts", PromptGraphs(runner.decoder, runner.kv_cache, plan))
    plain, ahead, log = both(llm, monkeypatch, ["seeded", "greedy", "greedy"], late=4)
    assert [rounded(output) for output in ahead] == plain
    assert log == all_ahead(14)


def test_without_graphs_steps_are_launched_ahead_too(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain = run(llm.engine, ["seeded", "greedy"], late=4)
    log = look_ahead(llm.engine, monkeypatch)
    monkeypatch.setattr(llm.engine.runner, "graphs", None)
    assert [rounded(output) for output in run(llm.engine, ["seeded", "greedy"], late=4)] == plain
    assert log == all_ahead(15)


def test_who_wants_log_probabilities_of_a_prompt_has_a_plain_step(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = look_ahead(llm.engine, monkeypatch)
    llm.engine.add("running", PROMPTS[0], sampling())
    llm.engine.step()
    llm.engine.add("asking", PROMPTS[1], sampling(prompt_logprobs=1, max_tokens=1))
    outputs = []
    while llm.engine.has_requests:
        outputs += llm.engine.step()
    [asked] = [output for output in outputs if output.request_id == "asking"]
    assert asked.prompt_logprobs is not None
    assert len(asked.prompt_logprobs) == len(PROMPTS[1])
    assert log[:7] == [
        "compute",
        "compute ahead",
        "read",
        "read",
        "compute",
        "compute ahead",
        "read",
    ]


def test_a_cache_too_small_for_all_gives_the_same_tokens(
    tiny_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Who is preempted is so by a plain step; what others have computed is found again."""
    with LLM(
        tiny_path, dtype="float32", device="cpu", block_size=8, num_blocks=6, max_num_seqs=3
    ) as small:
        kinds = ["seeded", "greedy", "grammar", "seeded"]
        plain = run(small.engine, kinds, late=3)
        before = small.engine.scheduler.num_preemptions
        log = look_ahead(small.engine, monkeypatch)
        ahead = run(small.engine, kinds, late=3)
        tokens = [[(one.request_id, one.token_id) for one in outputs] for outputs in (ahead, plain)]
        assert tokens[0] == tokens[1]
        assert small.engine.scheduler.num_preemptions > before
        assert log.count("compute") > 1
        assert log.count("compute ahead") > 14


def test_a_stop_token_ends_a_sequence_whose_next_step_is_computed(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    look_ahead(llm.engine, monkeypatch)
    free = [output.token_id for output in run(llm.engine, ["grammar"])]
    stop = free[5]
    monkeypatch.setattr(llm.engine, "eos_token_ids", frozenset({stop}))
    stopped = run(llm.engine, ["grammar"])
    assert [output.token_id for output in stopped] == free[: free.index(stop) + 1]
    assert stopped[-1].finish_reason == "stop"


@pytest.mark.parametrize("kind", ["greedy", "seeded", "penalties"])
def test_sequences_that_reach_their_length_do_not_hold_the_others_up(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """They end after 14, 11 and 8 tokens."""
    plain, ahead, log = both(llm, monkeypatch, [kind] * 3)
    assert [rounded(output) for output in ahead] == plain
    assert log == all_ahead(14)


def test_who_waits_takes_the_place_of_one_that_reaches_its_length_before_that_is_read(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = look_ahead(llm.engine, monkeypatch)
    monkeypatch.setattr(llm.engine.scheduler, "max_num_seqs", 2)
    outputs = run(llm.engine, ["greedy"] * 3)
    assert [output.request_id for output in outputs] == ["0"] * 14 + ["1"] * 11 + ["2"] * 8
    # The second one ends with the eleventh step; the third has the twelfth to the nineteenth.
    assert log == all_ahead(19)


@pytest.mark.parametrize("seed", range(6))
def test_requests_of_all_kinds_at_random_have_the_tokens_of_plain_steps(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    plain = mixed_requests.run(llm.engine, seed)
    log = look_ahead(llm.engine, monkeypatch)
    mixed_requests.assert_alike(mixed_requests.run(llm.engine, seed), plain)
    assert log.count("compute ahead") > 20
    assert sum(map(len, plain[0].values())) > 60
