"""Tokens depend on the request alone: not on batch, chunks, cache, preemption or neighbours."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lite_llama import LLM, ContextTooLong, RequestError, RequestOutput, SamplingParams, ops
from tests.models import tiny

PROMPTS = [tiny.token_ids(length, seed=length) for length in (5, 23, 1, 40, 16, 17)]
GREEDY = SamplingParams(temperature=0, max_tokens=12)
SEEDED = [
    SamplingParams(temperature=1.0, max_tokens=12, seed=i, ignore_eos=True)
    for i in range(len(PROMPTS))
]


def load(path: Path, **settings: Any) -> LLM:
    return LLM(path, dtype="float32", device="cpu", **settings)


@pytest.fixture(scope="module")
def llm(tiny_path: Path) -> Iterator[LLM]:
    with load(tiny_path) as loaded:
        yield loaded


@pytest.fixture(autouse=True)
def no_block_is_lost(request: pytest.FixtureRequest) -> Iterator[None]:
    yield
    if "llm" in request.fixturenames:
        check_idle(request.getfixturevalue("llm"))


def check_idle(llm: LLM) -> None:
    scheduler = llm.engine.scheduler
    scheduler.pool.check()
    assert scheduler.pool.num_used == 0
    assert not scheduler.has_requests
    assert not llm._live
    assert not llm.engine._live


def tokens(outputs: list[RequestOutput]) -> list[list[int]]:
    return [completion.token_ids for output in outputs for completion in output.outputs]


def greedy_by_hand(llm: LLM, prompt: list[int], count: int) -> list[int]:
    """Greedy decoding without cache: the whole text again for every token."""
    ids = list(prompt)
    for _ in range(count):
        ids.append(int(llm.logits(ids)[-1].argmax()))
    return ids[len(prompt) :]


@pytest.fixture(scope="module")
def alone(tiny_path: Path) -> dict[str, list[list[int]]]:
    """Each prompt by itself, without any cache: what every other way must give too."""
    with load(tiny_path, prefix_caching=False, max_num_seqs=1) as llm:
        return {
            "greedy": [greedy_by_hand(llm, prompt, 12) for prompt in PROMPTS],
            "seeded": [
                tokens(llm.generate(prompt, params))[0]
                for prompt, params in zip(PROMPTS, SEEDED, strict=True)
            ],
        }


def test_the_sampled_answers_differ_from_the_greedy_ones(alone: dict[str, list[list[int]]]) -> None:
    assert all(g != s for g, s in zip(alone["greedy"], alone["seeded"], strict=True))
    assert all(len(set(answer)) > 4 for answer in alone["seeded"])


WAYS: dict[str, dict[str, Any]] = {
    "as it comes": {},
    "three at a time": {"max_num_seqs": 3},
    "in chunks of 7": {"max_num_seqs": 7, "max_num_batched_tokens": 7},
    "in chunks of 16": {"max_num_batched_tokens": 16},
    "blocks of 8": {"block_size": 8},
    "blocks of 64": {"block_size": 64},
    "without prefix cache": {"prefix_caching": False},
}


@pytest.mark.parametrize("way", WAYS)
def test_a_batch_gives_what_each_prompt_gives_alone(
    tiny_path: Path, alone: dict[str, list[list[int]]], way: str
) -> None:
    with load(tiny_path, **WAYS[way]) as llm:
        assert tokens(llm.generate(PROMPTS, GREEDY)) == alone["greedy"]
        assert tokens(llm.generate(PROMPTS, SEEDED)) == alone["seeded"]
        # Once more, now with whatever the prefix cache holds.
        again = llm.generate(PROMPTS, GREEDY)
        assert tokens(again) == alone["greedy"]
        cached = [output.num_cached_tokens for output in again]
        size = llm.plan.block_size
        expected = [(len(prompt) - 1) // size * size for prompt in PROMPTS]
        assert cached == (expected if llm.plan.prefix_caching else [0] * len(PROMPTS))
        check_idle(llm)


@pytest.mark.parametrize("caching", [True, False])
def test_preempted_requests_give_the_same_tokens(
    tiny_path: Path, alone: dict[str, list[list[int]]], *, caching: bool
) -> None:
    settings = {"block_size": 8, "num_blocks": 9, "max_model_len": 64}
    with load(tiny_path, prefix_caching=caching, **settings) as llm:
        assert tokens(llm.generate(PROMPTS, GREEDY)) == alone["greedy"]
        assert llm.engine.scheduler.num_preemptions >= 1
        before = llm.engine.scheduler.num_preemptions
        assert tokens(llm.generate(PROMPTS, SEEDED)) == alone["seeded"]
        assert llm.engine.scheduler.num_preemptions > before
        check_idle(llm)


def test_a_tenth_of_the_cache_gives_the_same_tokens(tiny_path: Path) -> None:
    """Row L4 of the server's matrix: 200 requests of up to 63 tokens want 8 blocks of 8 each."""
    prompts = [tiny.token_ids(8 + number % 24, seed=number) for number in range(200)]
    params = SamplingParams(temperature=0, max_tokens=32, ignore_eos=True)
    settings = {"block_size": 8, "max_model_len": 64, "max_num_seqs": 200}
    demand = sum(-(-(len(prompt) + 32) // 8) for prompt in prompts)
    with load(tiny_path, num_blocks=demand, **settings) as ample:
        expected = tokens(ample.generate(prompts, params))
        assert ample.engine.scheduler.num_preemptions == 0
    with load(tiny_path, num_blocks=demand // 10, **settings) as llm:
        assert tokens(llm.generate(prompts, params)) == expected
        assert llm.engine.scheduler.num_preemptions >= 1
        check_idle(llm)


class _Anything:
    """A grammar that allows every token, and breaks at a given call if there is one."""

    def __init__(self, breaks_at: int | None = None) -> None:
        self._breaks_at = breaks_at
        self._num_accepted = 0

    @staticmethod
    def fill_masks(grammars: dict[int, "_Anything"], words: Any) -> dict[int, str]:
        words[list(grammars)] = -1
        return {}

    def accept(self, token_id: int) -> None:
        del token_id
        self._num_accepted += 1
        if self._num_accepted == self._breaks_at:
            raise RuntimeError("broken")


def test_a_broken_grammar_leaves_the_others_bitwise_unchanged(llm: LLM) -> None:
    """Row L10 of the server's matrix: the neighbour breaks with its fourth token, or ends there."""
    described = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, logprobs=5)

    def beside(max_tokens: int, breaks_at: int | None) -> tuple[list[Any], list[str | None]]:
        engine = llm.engine
        engine.add("plain", PROMPTS[1], described, cache_salt=str(breaks_at))
        params = SamplingParams(temperature=0, max_tokens=max_tokens)
        grammar = _Anything(breaks_at)
        engine.add("other", PROMPTS[3], params, cache_salt=str(breaks_at), grammar=grammar)
        rows: dict[str, list[Any]] = {"plain": [], "other": []}
        while engine.has_requests:
            for output in engine.step():
                rows[output.request_id].append(output)
        return (
            [(output.token_id, output.logprobs) for output in rows["plain"]],
            [output.finish_reason for output in rows["other"]],
        )

    broken, ending = beside(12, 4)
    sound, _ = beside(4, None)
    assert ending == [None, None, None, "error"]
    assert len(broken) == 12
    assert broken == sound
    check_idle(llm)


def test_tokens_after_the_cached_prefix_see_it(llm: LLM) -> None:
    prompt = tiny.token_ids(50, seed=50)
    llm.generate(prompt, GREEDY)
    longer = [*prompt, *tiny.token_ids(9, seed=9)]
    [output] = llm.generate([longer], GREEDY)
    assert output.num_cached_tokens == 48
    assert output.outputs[0].token_ids == greedy_by_hand(llm, longer, 12)


def test_several_completions_are_the_draws_of_consecutive_seeds(llm: LLM) -> None:
    params = SamplingParams(n=4, seed=100, max_tokens=10)
    [output] = llm.generate([PROMPTS[0]], params)
    single = [
        tokens(llm.generate(PROMPTS[0], SamplingParams(seed=100 + i, max_tokens=10)))[0]
        for i in range(4)
    ]
    assert [completion.token_ids for completion in output.outputs] == single
    assert [completion.index for completion in output.outputs] == [0, 1, 2, 3]
    assert len(set(map(tuple, single))) == 4


def test_unseeded_completions_differ(llm: LLM) -> None:
    [output] = llm.generate([PROMPTS[0]], SamplingParams(n=8, max_tokens=10))
    assert len({tuple(completion.token_ids) for completion in output.outputs}) == 8


def test_seeds_decide_the_answer_whatever_the_batch(llm: LLM) -> None:
    params = SamplingParams(seed=5, max_tokens=10)
    single = tokens(llm.generate(PROMPTS[1], params))[0]
    others = [SamplingParams(seed=i, max_tokens=i + 3, top_k=5) for i in range(4)]
    mixed = llm.generate([*PROMPTS[:4], PROMPTS[1]], [*others, params])
    assert mixed[-1].outputs[0].token_ids == single
    assert tokens(llm.generate(PROMPTS[1], SamplingParams(seed=6, max_tokens=10)))[0] != single


def test_every_draw_is_that_of_its_seed_and_position(llm: LLM) -> None:
    params = SamplingParams(seed=77, max_tokens=10, temperature=1.3, top_k=40, ignore_eos=True)
    ids = list(PROMPTS[1])
    for _ in range(10):
        row = ops.SamplingRows(
            temperature=torch.tensor([1.3]),
            top_k=torch.tensor([40], dtype=torch.int32),
            top_p=torch.tensor([1.0]),
            min_p=torch.tensor([0.0]),
            seeds=torch.tensor([77]),
            positions=torch.tensor([len(ids)]),
        )
        ids.append(int(ops.sample(llm.logits(ids)[-1:], row)))
    assert tokens(llm.generate(PROMPTS[1], params))[0] == ids[len(PROMPTS[1]) :]


def test_negative_and_extreme_seeds_are_seeds(llm: LLM) -> None:
    seeds = [-(2**63), -1, 0, 1, 2**63 - 1]
    answers = [
        tokens(llm.generate(PROMPTS[0], SamplingParams(seed=seed, max_tokens=10)))[0]
        for seed in seeds
    ]
    again = [
        tokens(llm.generate(PROMPTS[0], SamplingParams(seed=seed, max_tokens=10)))[0]
        for seed in seeds
    ]
    assert answers == again
    assert answers[2] != answers[3]


# --- what the settings of a request do, against plain torch ---------------------------------


def penalised_by_hand(
    logits: Tensor, prompt: list[int], output: list[int], params: SamplingParams
) -> Tensor:
    logits = logits.clone()
    for token, bias in (params.logit_bias or {}).items():
        logits[token] += bias
    for token in set(prompt) | set(output):
        factor = params.repetition_penalty
        logits[token] = logits[token] / factor if logits[token] > 0 else logits[token] * factor
    for token in set(output):
        logits[token] -= params.presence_penalty
        logits[token] -= params.frequency_penalty * output.count(token)
    return logits


# Raises some tokens so far that the model repeats them, if nothing stops it.
FAVOURED = dict.fromkeys(range(20, 26), 4.0)
PENALTIES: dict[str, dict[str, Any]] = {
    "repetition": {"repetition_penalty": 1.8},
    "repetition below one": {"repetition_penalty": 0.3},
    "presence": {"presence_penalty": 2.0},
    "frequency": {"frequency_penalty": 1.5},
    "negative": {"frequency_penalty": -2.0, "presence_penalty": -1.0},
    "integer bias": {"logit_bias": {17: 100, 40: -100}},
    "all": {"repetition_penalty": 1.3, "presence_penalty": 0.5, "frequency_penalty": 0.7},
}


@pytest.mark.parametrize("name", PENALTIES)
def test_penalties_and_bias_are_what_they_say(llm: LLM, name: str) -> None:
    common = {"temperature": 0, "max_tokens": 12, "ignore_eos": True}
    changed = SamplingParams(**{**common, "logit_bias": FAVOURED, **PENALTIES[name]})
    favoured = SamplingParams(**common, logit_bias=FAVOURED)
    plain = SamplingParams(**common)
    prompt = PROMPTS[3]
    # One batch: a row's penalties must not touch its neighbours.
    outputs = llm.generate([prompt] * 3, [favoured, changed, plain])
    answers = tokens(outputs)
    for params, given in zip([favoured, changed, plain], answers, strict=True):
        ids: list[int] = []
        for _ in range(12):
            logits = llm.logits([*prompt, *ids])[-1]
            ids.append(int(penalised_by_hand(logits, prompt, ids, params).argmax()))
        assert given == ids
    assert len(set(map(tuple, answers))) == 3, "the settings changed nothing"


def test_a_stop_token_ends_the_answer(llm: LLM) -> None:
    plain = greedy_by_hand(llm, PROMPTS[1], 12)
    stop = plain[5]
    first = plain.index(stop)
    params = SamplingParams(temperature=0, max_tokens=12, stop_token_ids=[stop])
    completion = llm.generate(PROMPTS[1], params)[0].outputs[0]
    assert completion.token_ids == plain[: first + 1]
    assert (completion.finish_reason, completion.stop_reason) == ("stop", stop)


def test_min_tokens_bans_stop_tokens_until_then(llm: LLM) -> None:
    plain = greedy_by_hand(llm, PROMPTS[1], 12)
    params = SamplingParams(
        temperature=0, max_tokens=12, min_tokens=6, stop_token_ids=[plain[0], plain[3]]
    )
    ids: list[int] = []
    while len(ids) < 12 and not (len(ids) > 6 and ids[-1] in params.stop_token_ids):
        logits = llm.logits([*PROMPTS[1], *ids])[-1].clone()
        if len(ids) < 6:
            logits[[*params.stop_token_ids, *llm.engine.eos_token_ids]] = float("-inf")
        ids.append(int(logits.argmax()))
    assert llm.generate(PROMPTS[1], params)[0].outputs[0].token_ids == ids
    assert ids != plain


def test_the_models_own_end_counts_unless_it_is_ignored(llm: LLM) -> None:
    [eos] = llm.engine.eos_token_ids
    bias = {eos: 100.0}
    params = SamplingParams(temperature=0, max_tokens=3, logit_bias=bias)
    ended = llm.generate(PROMPTS[0], params)[0].outputs[0]
    assert (ended.token_ids, ended.finish_reason, ended.stop_reason) == ([eos], "stop", eos)
    params = SamplingParams(temperature=0, max_tokens=3, logit_bias=bias, ignore_eos=True)
    ignored = llm.generate(PROMPTS[0], params)[0].outputs[0]
    assert (ignored.token_ids, ignored.finish_reason) == ([eos] * 3, "length")
    assert ignored.stop_reason is None


def test_max_tokens_none_goes_to_the_end_of_the_context(tiny_path: Path) -> None:
    with load(tiny_path, max_model_len=30) as llm:
        params = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True)
        [output] = llm.generate([PROMPTS[1]], params)
        assert len(PROMPTS[1]) + len(output.outputs[0].token_ids) == 30
        assert output.outputs[0].finish_reason == "length"
        many = SamplingParams(temperature=0, max_tokens=10**6, ignore_eos=True)
        assert tokens(llm.generate(PROMPTS[1], many)) == tokens([output])


def test_max_tokens_none_is_served_from_a_cache_smaller_than_the_context(tiny_path: Path) -> None:
    params = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True)
    with load(tiny_path, num_blocks=3, block_size=8) as llm:
        [output] = llm.generate([PROMPTS[0]], params)
        assert len(PROMPTS[0]) + len(output.outputs[0].token_ids) == 24
        with pytest.raises(RequestError, match="limit 24 tokens of KV cache"):
            llm.generate([PROMPTS[3]], params)
        check_idle(llm)


def test_a_prompt_that_leaves_no_room_for_an_answer_is_refused(tiny_path: Path) -> None:
    with load(tiny_path, max_model_len=16) as llm:
        with pytest.raises(ContextTooLong, match="16 tokens, limit 15") as caught:
            llm.generate(tiny.token_ids(16), GREEDY)
        assert caught.value.param == "prompt"
        [output] = llm.generate([tiny.token_ids(15)], GREEDY)
        assert len(output.outputs[0].token_ids) == 1
        with pytest.raises(ContextTooLong, match="17 tokens, limit max_model_len 16"):
            llm.logits(tiny.token_ids(17))
        assert llm.logits(tiny.token_ids(16)).shape == (16, tiny.VOCAB)


def test_one_bad_prompt_of_a_batch_leaves_nothing_behind(llm: LLM) -> None:
    with pytest.raises(RequestError, match=f"token id {tiny.VOCAB}"):
        llm.generate([PROMPTS[0], [tiny.VOCAB]], GREEDY)
    check_idle(llm)
    assert tokens(llm.generate(PROMPTS[0], GREEDY))[0] == greedy_by_hand(llm, PROMPTS[0], 12)


# --- log-probabilities ---------------------------------------------------------------------


def assert_row(row: Any, expected: Tensor, token: int, num_top: int) -> None:
    """`row`: the token's own entry, then the `num_top` most likely ones."""
    assert row[0].token_id == token
    assert row[0].logprob == pytest.approx(float(expected[token]), abs=1e-4)
    assert row[0].rank == int((expected > expected[token]).sum()) + 1
    best = expected.topk(num_top) if num_top else None
    assert len(row) == 1 + num_top
    for rank, entry in enumerate(row[1:], start=1):
        assert best is not None
        assert entry.token_id == int(best.indices[rank - 1])
        assert entry.logprob == pytest.approx(float(best.values[rank - 1]), abs=1e-4)
        assert entry.rank == rank


@pytest.mark.parametrize("num_top", [0, 1, 5])
def test_logprobs_are_those_of_the_models_own_distribution(llm: LLM, num_top: int) -> None:
    params = SamplingParams(
        seed=3, max_tokens=6, logprobs=num_top, temperature=0.7, logit_bias={9: 2.0}, top_k=50
    )
    without = SamplingParams(temperature=0, max_tokens=4)
    outputs = llm.generate([PROMPTS[0], PROMPTS[1]], [without, params])
    assert outputs[0].outputs[0].logprobs is None
    assert outputs[0].outputs[0].cumulative_logprob is None
    completion = outputs[1].outputs[0]
    ids = completion.token_ids
    expected = llm.logits([*PROMPTS[1], *ids]).log_softmax(-1)[len(PROMPTS[1]) - 1 :]
    assert completion.logprobs is not None
    assert len(completion.logprobs) == 6
    for i, row in enumerate(completion.logprobs):
        assert_row(row, expected[i], ids[i], num_top)
    total = sum(float(expected[i, token]) for i, token in enumerate(ids))
    assert completion.cumulative_logprob == pytest.approx(total, abs=1e-3)


PROMPT_WAYS: dict[str, dict[str, Any]] = {
    "whole": {},
    "in chunks": {"max_num_batched_tokens": 7, "max_num_seqs": 3},
    "preempted": {"num_blocks": 9, "block_size": 8, "max_num_batched_tokens": 16},
}


@pytest.mark.parametrize("way", PROMPT_WAYS)
@pytest.mark.parametrize("num_top", [0, 3])
def test_prompt_logprobs_are_complete(tiny_path: Path, num_top: int, way: str) -> None:
    params = SamplingParams(temperature=0, max_tokens=12, prompt_logprobs=num_top)
    with load(tiny_path, **PROMPT_WAYS[way]) as llm:
        plain = [greedy_by_hand(llm, prompt, 12) for prompt in PROMPTS]
        llm.generate(PROMPTS, GREEDY)  # a warm prefix cache must change nothing
        outputs = llm.generate([*PROMPTS, PROMPTS[0]], [*[params] * len(PROMPTS), GREEDY])
        if way == "preempted":
            assert llm.engine.scheduler.num_preemptions >= 1
        assert tokens(outputs[:-1]) == plain
        assert outputs[-1].prompt_logprobs is None
        for output, prompt in zip(outputs, PROMPTS, strict=False):
            rows = output.prompt_logprobs
            assert rows is not None
            assert len(rows) == len(prompt)
            assert rows[0] is None
            expected = llm.logits(prompt).log_softmax(-1)
            for i, row in enumerate(rows[1:], start=1):
                assert_row(row, expected[i - 1], prompt[i], num_top)


def test_prompt_logprobs_survive_a_preemption_inside_the_prompt(tiny_path: Path) -> None:
    # Six blocks of 8: the long prompt, in chunks, is pushed out by the older request's growth.
    with load(
        tiny_path, num_blocks=8, block_size=8, max_num_batched_tokens=4, max_num_seqs=2
    ) as llm:
        long = tiny.token_ids(47, seed=47)
        old = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)
        params = SamplingParams(temperature=0, max_tokens=2, prompt_logprobs=1)
        outputs = llm.generate([PROMPTS[4], long], [old, params])
        rows = outputs[1].prompt_logprobs
        assert llm.engine.scheduler.num_preemptions >= 1
        assert rows is not None
        expected = llm.logits(long).log_softmax(-1)
        assert len(rows) == 47
        for i, row in enumerate(rows[1:], start=1):
            assert_row(row, expected[i - 1], long[i], 1)


# --- streams and aborts --------------------------------------------------------------------


def test_streams_that_take_turns_do_not_disturb_each_other(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=9, ignore_eos=True)
    streams = [llm.stream(prompt, params) for prompt in PROMPTS[:2]]
    collected: list[list[int]] = [[], []]
    open_streams = [0, 1]
    while open_streams:
        for i in list(open_streams):
            chunk = next(streams[i], None)
            if chunk is None:
                open_streams.remove(i)
            else:
                collected[i] += chunk.token_ids
    assert collected == [greedy_by_hand(llm, prompt, 9) for prompt in PROMPTS[:2]]


def test_generate_may_run_while_a_stream_is_open(llm: LLM) -> None:
    params = SamplingParams(temperature=0, max_tokens=9, ignore_eos=True)
    stream = llm.stream(PROMPTS[0], params)
    collected = [*next(stream).token_ids]
    assert tokens(llm.generate(PROMPTS[1], params))[0] == greedy_by_hand(llm, PROMPTS[1], 9)
    for chunk in stream:
        collected += chunk.token_ids
    assert collected == greedy_by_hand(llm, PROMPTS[0], 9)


def test_only_the_last_chunk_carries_reason_and_metrics(llm: LLM) -> None:
    chunks = list(llm.stream(PROMPTS[1], SamplingParams(temperature=0, max_tokens=5)))
    assert [chunk.finish_reason for chunk in chunks] == [None] * 4 + ["length"]
    assert all(chunk.metrics is None for chunk in chunks[:-1])
    metrics = chunks[-1].metrics
    assert metrics is not None
    assert (metrics.num_prompt_tokens, metrics.num_generated_tokens) == (len(PROMPTS[1]), 5)
    assert metrics.time_to_first_token_s > 0
    assert metrics.tokens_per_s == pytest.approx(4 / metrics.generation_s)


def test_a_stream_hands_out_all_of_several_completions(llm: LLM) -> None:
    params = SamplingParams(n=3, seed=1, max_tokens=5)
    by_index: dict[int, list[int]] = {0: [], 1: [], 2: []}
    for chunk in llm.stream(PROMPTS[0], params):
        by_index[chunk.index] += chunk.token_ids
    expected = tokens(llm.generate(PROMPTS[0], params))
    assert list(by_index.values()) == expected


def test_a_stream_left_early_frees_its_blocks(llm: LLM) -> None:
    stream = llm.stream(PROMPTS[3], SamplingParams(max_tokens=50))
    next(stream)
    assert llm.engine.scheduler.pool.num_used > 0
    stream.close()
    check_idle(llm)


def test_a_stream_never_started_holds_nothing(llm: LLM) -> None:
    stream = llm.stream(PROMPTS[3], GREEDY)
    check_idle(llm)
    stream.close()


def test_an_abort_in_the_middle_frees_blocks_and_spares_the_others(llm: LLM) -> None:
    engine = llm.engine
    engine.add("gone", PROMPTS[3], GREEDY)
    engine.add("stays", PROMPTS[1], GREEDY)
    engine.step()
    engine.step()
    used = engine.scheduler.pool.num_used
    engine.abort("gone")
    assert engine.scheduler.pool.num_used < used
    ids = []
    while engine.has_requests:
        ids += [output.token_id for output in engine.step()]
    assert greedy_by_hand(llm, PROMPTS[1], 12)[2:] == ids
    engine.abort("gone")
    engine.abort("never there")


def test_a_request_id_in_use_is_refused(llm: LLM) -> None:
    llm.engine.add("a", PROMPTS[0], GREEDY)
    with pytest.raises(RequestError, match="'a' is in use"):
        llm.engine.add("a", PROMPTS[1], GREEDY)
    llm.engine.abort("a")


def test_an_interrupted_generate_drops_its_requests(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = llm.engine.step
    calls = iter(range(3))

    def interrupted() -> Any:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return step()

    monkeypatch.setattr(llm.engine, "step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        llm.generate(PROMPTS, GREEDY)
    check_idle(llm)


def test_logits_may_be_asked_beside_running_requests(llm: LLM) -> None:
    expected = llm.logits(PROMPTS[1])
    stream = llm.stream(PROMPTS[0], GREEDY)
    collected = [*next(stream).token_ids]
    torch.testing.assert_close(llm.logits(PROMPTS[1]), expected, atol=1e-5, rtol=0)
    for chunk in stream:
        collected += chunk.token_ids
    assert collected == greedy_by_hand(llm, PROMPTS[0], 12)


def test_logits_beyond_the_free_blocks_are_refused(tiny_path: Path) -> None:
    with load(tiny_path, num_blocks=2, block_size=8) as llm:
        assert llm.logits(tiny.token_ids(16)).shape[0] == 16
        with pytest.raises(RequestError, match="17 tokens need 3 KV blocks, limit 2"):
            llm.logits(tiny.token_ids(17))
        check_idle(llm)


def test_a_closed_model_may_be_closed_again(tiny_path: Path) -> None:
    llm = load(tiny_path)
    with llm:
        llm.close()
    llm.close()
