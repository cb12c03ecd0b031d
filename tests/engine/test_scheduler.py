"""The scheduler: who runs, with how many tokens, in which blocks."""

import itertools
from typing import Any

import pytest

from lite_llama.cache import block_pool
from lite_llama.cache.block_pool import BlockPool, block_key
from lite_llama.engine.request import Request
from lite_llama.engine.sampling_params import SamplingParams
from lite_llama.engine.scheduler import Scheduled, Scheduler
from lite_llama.errors import RequestError

SIZE = 4


def scheduler(
    num_blocks: int = 100, max_num_seqs: int = 8, budget: int = 256, *, caching: bool = True
) -> Scheduler:
    return Scheduler(BlockPool(num_blocks, SIZE, caching), max_num_seqs, budget)


def request(name: str, prompt: list[int] | int, max_tokens: int = 100, **params: Any) -> Request:
    """A prompt given by its length has tokens of its own."""
    tokens = (
        [100 * sum(name.encode()) + i for i in range(prompt)] if isinstance(prompt, int) else prompt
    )
    return Request(
        request_id=name,
        prompt_token_ids=tokens,
        params=SamplingParams(max_tokens=max_tokens, **params),
        seed=0,
        stop_token_ids=frozenset({7}),
        max_total_tokens=len(tokens) + max_tokens,
        cache_salt="",
    )


def shares(planned: list[Scheduled]) -> list[tuple[str, int]]:
    return [(scheduled.request.request_id, scheduled.num_new_tokens) for scheduled in planned]


def settle(target: Scheduler, planned: list[Scheduled], tokens: dict[str, int]) -> None:
    """Book a step and what it has drawn, by request id."""
    target.advance(planned)
    for scheduled in planned:
        if scheduled.draws_token and scheduled.request.finish_reason is None:
            target.settle(scheduled.request, tokens[scheduled.request.request_id])


def step(target: Scheduler, token: int = 1) -> list[tuple[str, int]]:
    """Plan and commit one step in which every draw gives `token`."""
    planned = target.plan()
    drawing = [scheduled.request.request_id for scheduled in planned if scheduled.draws_token]
    settle(target, planned, dict.fromkeys(drawing, token))
    target.pool.check()
    return shares(planned)


def test_prompts_run_in_order_of_arrival_and_then_decode() -> None:
    target = scheduler()
    first, second = request("a", 5), request("b", 6)
    target.add(first)
    target.add(second)
    assert step(target) == [("a", 5), ("b", 6)]
    assert step(target, 2) == [("a", 1), ("b", 1)]
    assert first.output_token_ids == [1, 2]
    assert second.num_computed_tokens == 7


def test_a_long_prompt_is_computed_in_chunks() -> None:
    target = scheduler(budget=8)
    long = request("a", 19)
    target.add(long)
    assert [step(target) for _ in range(4)] == [[("a", 8)], [("a", 8)], [("a", 3)], [("a", 1)]]
    assert long.output_token_ids == [1, 1]


def test_running_requests_go_first_and_prompts_beside_them_get_a_sixteenth_of_the_budget() -> None:
    target = scheduler(budget=128)
    target.add(request("a", 3))
    step(target)
    target.add(request("b", 20))
    assert step(target) == [("a", 1), ("b", 8)]
    target.add(request("c", 9))
    assert step(target) == [("a", 1), ("b", 8)]
    assert step(target) == [("a", 1), ("b", 4), ("c", 4)]
    assert step(target) == [("a", 1), ("b", 1), ("c", 5)]


def test_prompts_beside_decodes_get_half_again_of_what_comes_within_bounds() -> None:
    target = scheduler(num_blocks=10_000, max_num_seqs=2000, budget=512)
    target.add(request("a", 3, max_tokens=1000))
    step(target)

    numbers = itertools.count()

    def taken(num_new: int) -> int:
        """Tokens of prompts in a step, before which so many requests of 40 tokens come."""
        for number in itertools.islice(numbers, num_new):
            first = 1000 + 40 * number
            target.add(request(str(number), list(range(first, first + 40)), max_tokens=1))
        return sum(count for _, count in step(target)[1:])

    assert [taken(1) for _ in range(3)] == [32, 32, 32]  # a sixteenth
    assert [taken(1) for _ in range(300)][-100:] == [40] * 100
    assert [taken(10), *(taken(0) for _ in range(6))] == [59, 67, 66, 65, 64, 63, 16]
    assert [taken(1000), taken(0)] == [256, 256]  # half


def test_requests_that_decode_behind_a_prompt_in_chunks_do_not_wait_for_it() -> None:
    target = scheduler(budget=32)
    target.add(request("a", 65))
    assert step(target) == [("a", 32)]
    target.add(request("b", 1))
    assert step(target) == [("a", 32)]
    assert step(target) == [("a", 1), ("b", 1)]
    target.add(request("c", 3))
    assert step(target) == [("a", 1), ("b", 1), ("c", 2)]
    target.add(request("d", 3))
    # What c has left is one token, as if it decoded.
    assert step(target) == [("a", 1), ("b", 1), ("c", 1), ("d", 2)]


def test_no_more_sequences_run_than_allowed() -> None:
    target = scheduler(max_num_seqs=2)
    for name in "abc":
        target.add(request(name, 2, max_tokens=2))
    assert step(target) == [("a", 2), ("b", 2)]
    assert step(target) == [("a", 1), ("b", 1)]
    assert step(target) == [("c", 2)]


def test_the_newest_is_preempted_and_keeps_its_tokens() -> None:
    target = scheduler(num_blocks=4, caching=False)
    old, new = request("old", 7, max_tokens=8), request("new", 7, max_tokens=8)
    target.add(old)
    target.add(new)
    step(target)  # two blocks each, and both write their eighth token next
    assert step(target) == [("old", 1), ("new", 1)]
    assert step(target) == [("old", 1)]
    assert target.num_preemptions == new.num_preemptions == 1
    assert old.num_preemptions == 0
    assert list(target.waiting) == [new]
    assert new.output_token_ids == [1, 1]
    assert (new.blocks, new.num_computed_tokens) == ([], 0)
    while old.finish_reason is None:
        step(target)
    assert step(target) == [("new", 9)]
    assert new.output_token_ids == [1, 1, 1]
    while target.has_requests:
        step(target)
    assert len(new.output_token_ids) == 8
    assert target.pool.num_used == 0


def test_a_preempted_request_waits_before_later_ones() -> None:
    target = scheduler(num_blocks=4, caching=False, max_num_seqs=2)
    for name in ("old", "new", "later"):
        target.add(request(name, 7, max_tokens=4))
    while not target.num_preemptions:
        step(target)
    assert [waiting.request_id for waiting in target.waiting] == ["new", "later"]


def test_a_preempted_request_finds_its_own_prefix_again() -> None:
    target = scheduler(num_blocks=5)
    old, new = request("old", 7, max_tokens=5), request("new", 8, max_tokens=8)
    target.add(old)
    target.add(new)
    while not target.num_preemptions:
        step(target)
    while old.finish_reason is None:
        step(target)
    known = new.num_tokens
    assert step(target) == [("new", known - 8)]
    assert new.num_cached_tokens == 0  # at first admission there was nothing


def test_a_request_that_waits_for_blocks_hashes_its_prefix_once(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = scheduler(num_blocks=16, budget=1600)
    prompt = list(range(200, 233))  # 8 full blocks and a token
    target.add(request("a", prompt, max_tokens=1))
    step(target)
    target.add(request("b", 28, max_tokens=5))
    step(target)
    num_hashed = 0

    def counting(*arguments: Any) -> Any:
        nonlocal num_hashed
        num_hashed += 1
        return block_key(*arguments)

    monkeypatch.setattr(block_pool, "block_key", counting)
    late = request("c", [*prompt[:20], *range(300, 324)], max_tokens=1)
    target.add(late)
    assert [step(target) for _ in range(4)] == [[("b", 1)]] * 4
    # Those that match, once a step the one that does not, and a block that b fills.
    assert num_hashed <= 5 + 4 + 1
    assert step(target) == [("c", 24)]
    assert late.num_cached_tokens == 20


def test_a_shared_prefix_is_computed_once() -> None:
    target = scheduler()
    prefix = list(range(100, 112))
    first, second = request("a", [*prefix, 1, 2]), request("b", [*prefix, 3, 4, 5])
    target.add(first)
    step(target)
    target.add(second)
    assert step(target) == [("a", 1), ("b", 3)]
    assert second.num_cached_tokens == 12
    assert second.blocks[:3] == first.blocks[:3]
    assert set(first.blocks[3:]).isdisjoint(second.blocks[3:])
    stats = target.pool.stats
    assert (stats.num_queried_tokens, stats.num_hit_tokens) == (14 + 15, 12)


def test_the_last_prompt_token_is_always_computed() -> None:
    target = scheduler(budget=64)
    prompt = list(range(100, 108))
    target.add(request("a", prompt))
    step(target)
    again = request("b", prompt)
    target.add(again)
    assert step(target) == [("a", 1), ("b", 4)]
    assert again.num_cached_tokens == 4


def test_a_request_for_prompt_logprobs_computes_its_whole_prompt() -> None:
    target = scheduler(budget=192)
    prompt = list(range(100, 112))
    target.add(request("a", prompt))
    step(target)
    target.add(request("b", prompt, prompt_logprobs=1))
    assert step(target) == [("a", 1), ("b", 12)]


def test_a_stop_token_ends_a_request_and_frees_it() -> None:
    target = scheduler()
    stopped = request("a", 5)
    target.add(stopped)
    step(target, 1)
    step(target, 7)
    assert (stopped.finish_reason, stopped.stop_token_id) == ("stop", 7)
    assert stopped.output_token_ids == [1, 7]
    assert not target.has_requests
    assert target.pool.num_used == 0


def test_a_stop_token_is_no_end_before_min_tokens() -> None:
    target = scheduler()
    patient = request("a", 5, min_tokens=2)
    target.add(patient)
    for _ in range(2):
        step(target, 7)
        assert patient.finish_reason is None
    step(target, 7)
    assert patient.finish_reason == "stop"


def test_length_ends_a_request() -> None:
    target = scheduler()
    short = request("a", 5, max_tokens=3)
    target.add(short)
    for _ in range(3):
        assert short.finish_reason is None
        step(target)
    assert (short.finish_reason, short.output_token_ids) == ("length", [1, 1, 1])


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_an_abort_frees_blocks_whether_waiting_prefilling_or_decoding(steps: int) -> None:
    target = scheduler(budget=8)
    aborted = request("a", 10)
    target.add(aborted)
    for _ in range(steps):
        step(target)
    assert (target.pool.num_used > 0) == (steps > 0)
    target.abort(aborted)
    assert aborted.finish_reason == "abort"
    assert not target.has_requests
    assert target.pool.num_used == 0
    target.abort(aborted)  # again: nothing happens
    target.pool.check()


def test_an_abort_between_plan_and_commit_draws_no_token() -> None:
    target = scheduler()
    gone, stays = request("a", 5), request("b", 5)
    target.add(gone)
    target.add(stays)
    planned = target.plan()
    target.abort(gone)
    settle(target, planned, {"a": 1, "b": 1})
    assert gone.output_token_ids == []
    assert stays.output_token_ids == [1]
    target.pool.check()


def test_a_step_planned_ahead_takes_in_who_waits_for_the_place_of_one_that_ends() -> None:
    target = scheduler(max_num_seqs=2, budget=96)
    for name, max_tokens in (("a", 1), ("b", 5), ("c", 5)):
        target.add(request(name, 6, max_tokens=max_tokens))
    planned = target.plan()
    assert shares(planned) == [("a", 6), ("b", 6)]
    target.advance(planned)
    assert shares(target.plan(is_ahead=True)) == [("b", 1), ("c", 6)]


def test_a_step_planned_ahead_preempts_nobody() -> None:
    target = scheduler(num_blocks=4)
    first, second = request("a", 8, max_tokens=8), request("b", 8, max_tokens=8)
    target.add(first)
    target.add(second)
    planned = target.plan()
    target.advance(planned)
    assert target.plan(is_ahead=True) == []
    for each in (first, second):
        target.settle(each, 1)
    assert shares(target.plan()) == [("a", 1)]
    assert list(target.waiting) == [second]
    assert second.output_token_ids == [1]


def test_a_token_that_is_not_read_counts_and_has_no_id() -> None:
    target = scheduler()
    only = request("a", 5)
    target.add(only)
    target.advance(target.plan())
    assert (only.num_tokens, only.num_pending_tokens, only.num_computed_tokens) == (6, 1, 5)
    assert only.tokens(3, 6) == only.prompt_token_ids[3:]
    [ahead] = target.plan(is_ahead=True)
    assert (ahead.num_new_tokens, ahead.draws_token) == (1, True)
    target.settle(only, 9)
    assert (only.num_tokens, only.num_unread_tokens, only.output_token_ids) == (6, 0, [9])


def test_what_can_never_fit_is_refused() -> None:
    target = scheduler(num_blocks=4)
    target.add(request("fits", 8, max_tokens=8))
    with pytest.raises(RequestError, match="up to 17 tokens, limit 16") as caught:
        target.add(request("too long", 8, max_tokens=9))
    assert caught.value.param == "max_tokens"
    assert step(target) == [("fits", 8)]


def test_an_idle_scheduler_plans_nothing() -> None:
    target = scheduler()
    assert target.plan() == []
    assert not target.has_requests
