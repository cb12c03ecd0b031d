"""Whatever happens in whatever order, no block is lost and every admitted request ends."""

import random
from collections import Counter
from itertools import pairwise

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from lite_llama.cache.block_pool import BlockPool
from lite_llama.engine.request import Request
from lite_llama.engine.sampling_params import SamplingParams
from lite_llama.engine.scheduler import Scheduled, Scheduler
from lite_llama.errors import RequestError

SIZE = 4
STOP = 0
SHORT = SamplingParams()


def new_request(name: str, prompt: list[int], max_tokens: int, salt: str = "") -> Request:
    return Request(
        request_id=name,
        prompt_token_ids=prompt,
        params=SHORT,
        seed=0,
        stop_token_ids=frozenset({STOP}),
        max_total_tokens=len(prompt) + max_tokens,
        cache_salt=salt,
    )


def check_books(scheduler: Scheduler) -> None:
    """Everything that must hold between any two calls."""
    pool = scheduler.pool
    pool.check()
    assert pool.num_free + pool.num_cached + pool.num_used == pool.num_blocks
    running, waiting = scheduler.running, list(scheduler.waiting)
    assert len(running) <= scheduler.max_num_seqs
    assert not {id(r) for r in running} & {id(r) for r in waiting}
    assert all(r.finish_reason is None for r in [*running, *waiting])
    assert all(not r.blocks and not r.num_computed_tokens for r in waiting)
    owners: Counter[int] = Counter()
    for r in running:
        assert len(set(r.blocks)) == len(r.blocks)
        assert len(r.blocks) >= -(-r.num_computed_tokens // SIZE)
        owners.update(r.blocks)
    assert pool.num_used == len(owners)
    for block, count in owners.items():
        assert pool._blocks[block].num_owners == count
        if count > 1:
            check_is_shared_prefix(block, [r for r in running if block in r.blocks])


def check_is_shared_prefix(block: int, owners: list[Request]) -> None:
    """A block of several requests is full, and they agree on all tokens up to its end.

    Blocks before it may be others: two requests that were computed side by side have one each.
    """
    for first, second in pairwise(owners):
        index = first.blocks.index(block)
        end = (index + 1) * SIZE
        assert second.blocks[index] == block
        assert min(first.num_computed_tokens, second.num_computed_tokens) >= end
        assert first.tokens(0, end) == second.tokens(0, end)
        assert first.cache_salt == second.cache_salt


def check_plan(scheduler: Scheduler, planned: list[Scheduled]) -> None:
    assert (
        sum(scheduled.num_new_tokens for scheduled in planned) <= scheduler.max_num_batched_tokens
    )
    requests = [scheduled.request for scheduled in planned]
    assert len({id(r) for r in requests}) == len(requests)
    for scheduled in planned:
        r = scheduled.request
        assert r in scheduler.running
        assert 1 <= scheduled.num_new_tokens <= r.num_pending_tokens
        assert len(r.blocks) * SIZE >= r.num_computed_tokens + scheduled.num_new_tokens


class Driver:
    """Makes steps as an engine does: one at a time, or each planned before the last is read."""

    def __init__(self, scheduler: Scheduler, draw: random.Random, *, looks_ahead: bool) -> None:
        self.scheduler = scheduler
        self._draw = draw
        self._looks_ahead = looks_ahead
        self._ahead: list[Scheduled] = []

    @property
    def has_work(self) -> bool:
        return self.scheduler.has_requests or bool(self._ahead)

    @property
    def is_behind(self) -> bool:
        """Whether a step is under way."""
        return bool(self._ahead)

    def step(self) -> int:
        """The number of requests in the step."""
        scheduler = self.scheduler
        planned, self._ahead = self._ahead, []
        if not planned:
            planned = scheduler.plan()
            check_plan(scheduler, planned)
        before = {id(s.request): s.request.num_tokens for s in planned}
        scheduler.advance(planned)
        if self._looks_ahead:
            self._ahead = scheduler.plan(is_ahead=True)
            check_plan(scheduler, self._ahead)
        for scheduled in planned:
            r = scheduled.request
            draws = scheduled.draws_token and r.finish_reason is None
            if draws:
                scheduler.settle(r, self._draw.randrange(0, 12))
            assert r.num_tokens == before[id(r)] + draws
        return len(planned)

    def drain(self) -> None:
        """Run until all have ended; a scheduler that stops making progress fails here."""
        idle = 0
        while self.has_work:
            idle = 0 if self.step() else idle + 1
            assert idle < 2, "nothing runs although requests wait"
            check_books(self.scheduler)


class SchedulerMachine(RuleBasedStateMachine):
    @initialize(
        num_blocks=st.integers(1, 12),
        max_num_seqs=st.integers(1, 5),
        spare_budget=st.integers(0, 12),
        caching=st.booleans(),
        looks_ahead=st.booleans(),
        seed=st.integers(0, 2**32),
    )
    def start(
        self,
        *,
        num_blocks: int,
        max_num_seqs: int,
        spare_budget: int,
        caching: bool,
        looks_ahead: bool,
        seed: int,
    ) -> None:
        pool = BlockPool(num_blocks, SIZE, caching)
        self.scheduler = Scheduler(pool, max_num_seqs, max_num_seqs + spare_budget)
        self.driver = Driver(self.scheduler, random.Random(seed), looks_ahead=looks_ahead)
        self.admitted: list[Request] = []
        self.number = 0

    @rule(
        prefix=st.integers(0, 12),
        rest=st.lists(st.integers(1, 2), min_size=1, max_size=12),
        max_tokens=st.integers(1, 20),
        salt=st.sampled_from(["", "other"]),
    )
    def add(self, prefix: int, rest: list[int], max_tokens: int, salt: str) -> None:
        self.number += 1
        request = new_request(str(self.number), [5] * prefix + rest, max_tokens, salt)
        fits = -(-request.max_total_tokens // SIZE) <= self.scheduler.pool.num_blocks
        try:
            self.scheduler.add(request)
        except RequestError:
            assert not fits
        else:
            assert fits
            self.admitted.append(request)

    @precondition(lambda self: self.driver.has_work)
    @rule(count=st.integers(1, 6))
    def step(self, count: int) -> None:
        for _ in range(count):
            self.driver.step()
            check_books(self.scheduler)

    @precondition(lambda self: self.admitted)
    @rule(data=st.data())
    def abort(self, data: st.DataObject) -> None:
        request = data.draw(st.sampled_from(self.admitted))
        was_over = request.finish_reason
        self.scheduler.abort(request)
        assert request.finish_reason == (was_over or "abort")
        assert request.blocks == []

    @precondition(lambda self: self.scheduler.running and not self.driver.is_behind)
    @rule()
    def abort_inside_a_step(self) -> None:
        planned = self.scheduler.plan()
        if planned:
            self.scheduler.abort(planned[0].request)
        self.scheduler.advance(planned)
        for scheduled in planned[1:]:
            if scheduled.draws_token:
                self.scheduler.settle(scheduled.request, 3)

    @rule()
    def evict(self) -> None:
        pool = self.scheduler.pool
        pool.release(pool.allocate(pool.num_available))
        assert pool.num_cached == 0

    @invariant()
    def books_balance(self) -> None:
        check_books(self.scheduler)

    def teardown(self) -> None:
        if not hasattr(self, "scheduler"):
            return
        self.driver.drain()
        assert self.scheduler.pool.num_used == 0
        for request in self.admitted:
            assert request.finish_reason in ("stop", "length", "abort")
            if request.finish_reason == "length":
                assert request.num_tokens == request.max_total_tokens


TestSchedulerMachine = SchedulerMachine.TestCase
TestSchedulerMachine.settings = settings(
    max_examples=200,
    stateful_step_count=30,
    deadline=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)


def test_ten_thousand_sequences_leave_no_block_behind() -> None:
    draw = random.Random(20240607)
    num_sequences = num_preemptions = num_hits = num_aborted = 0
    while num_sequences < 10_000:
        pool = BlockPool(draw.randint(8, 40), SIZE, draw.random() < 0.8)
        max_num_seqs = draw.randint(1, 12)
        scheduler = Scheduler(pool, max_num_seqs, max_num_seqs + draw.randint(0, 40))
        driver = Driver(scheduler, draw, looks_ahead=draw.random() < 0.5)
        requests: list[Request] = []
        for _ in range(250):
            prompt = [5] * draw.randint(0, 10) + [draw.randint(1, 3)] * draw.randint(1, 10)
            request = new_request(str(len(requests)), prompt, draw.randint(1, 11))
            scheduler.add(request)
            requests.append(request)
            for _ in range(draw.randint(0, 2)):
                driver.step()
            if draw.random() < 0.1:
                scheduler.abort(draw.choice(requests))
            if draw.random() < 0.1:
                check_books(scheduler)
        while driver.has_work:
            driver.step()
        check_books(scheduler)
        assert pool.num_used == 0
        assert pool.num_free + pool.num_cached == pool.num_blocks
        assert all(request.finish_reason for request in requests)
        num_sequences += len(requests)
        num_preemptions += scheduler.num_preemptions
        num_hits += pool.stats.num_hit_tokens
        num_aborted += sum(request.finish_reason == "abort" for request in requests)
    # The driver went where it was meant to go.
    assert num_preemptions > 300
    assert num_hits > 5_000
    assert num_aborted > 100
