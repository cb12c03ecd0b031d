"""Who runs in the next step, with how many tokens, in which blocks. Plain Python, no tensors.

Every request is treated alike: it has tokens (prompt, then output) of which some are computed. The
last one may be drawn but not read yet: a step can be planned behind one whose tokens are still on
the device. A step computes up to a budget of pending tokens: one each for requests that decode, a
chunk for those whose prompt is longer. While anybody decodes, prompts get a part of the budget, as
large as they need to keep up, so that no stream stands still behind them. Running requests go
first, then waiting ones in order of arrival. When blocks run out, the newest running request gives
its blocks back and waits at the front; its tokens are kept and computed again, mostly from the
prefix cache.
"""

from collections import deque
from itertools import islice

import msgspec

from lite_llama.cache.block_pool import BlockPool, block_key
from lite_llama.engine.request import Request
from lite_llama.errors import RequestError

# What prompts may take of a step beside decoding requests, who wait for all of it: so many times
# the tokens of prompts that have come a step of late, and a part of those that wait (of the first
# of them), within bounds given as divisors of the budget. See docs/lab/serving.md.
_PROMPT_ROOM = 1.5
_AVERAGED_STEPS = 64
_STEPS_TO_CATCH_UP = 8
_COUNTED_WAITING = 64
_LEAST_PROMPTS, _MOST_PROMPTS = 16, 2


class Scheduled(msgspec.Struct, frozen=True):
    """One request's share of a step: its next `num_new_tokens` pending tokens.

    A Struct because one is made for each token.
    """

    request: Request
    num_new_tokens: int
    draws_token: bool  # it reaches the request's last token, so that a new one is drawn


class Scheduler:
    """Owns the queues, and the block pool's use."""

    def __init__(self, pool: BlockPool, max_num_seqs: int, max_num_batched_tokens: int) -> None:
        self.pool = pool
        self.max_num_seqs = max_num_seqs
        self.max_num_batched_tokens = max_num_batched_tokens
        self.waiting: deque[Request] = deque()
        self.running: list[Request] = []
        self.num_preemptions = 0
        self._num_arrived_tokens = 0  # since the last step
        self._prompt_rate = 0.0  # tokens of new prompts a step, averaged

    @property
    def has_requests(self) -> bool:
        """Whether any request runs or waits."""
        return bool(self.waiting or self.running)

    def add(self, request: Request) -> None:
        """Queue a request; RequestError if it could never fit into the cache."""
        needed = -(-request.max_total_tokens // self.pool.block_size)
        if needed > self.pool.num_blocks:
            limit = self.pool.num_blocks * self.pool.block_size
            raise RequestError(
                f"prompt and answer take up to {request.max_total_tokens} tokens, limit {limit} "
                "tokens of KV cache; lower max_tokens or raise num_blocks",
                param="max_tokens",
            )
        self._num_arrived_tokens += request.num_pending_tokens
        self.waiting.append(request)

    def abort(self, request: Request) -> None:
        """End a request at once and free its blocks."""
        if request in self.running:
            self.running.remove(request)
        elif request in self.waiting:
            self.waiting.remove(request)
        else:
            return
        request.finish_reason = "abort"
        self._release(request)

    def plan(self, *, is_ahead: bool = False) -> list[Scheduled]:
        """The next step; empty when nothing can run.

        `is_ahead`: behind a step whose tokens are not read yet. Nobody is preempted then: the plan
        is empty if blocks run out. A plan that is not carried out costs nothing.
        """
        budget = self.max_num_batched_tokens
        # Once a token of each sequence: calls and properties would be half of the time.
        going = [one for one in self.running if one.num_tokens < one.max_total_tokens]
        prompts = budget
        if any(one.num_tokens - one.num_computed_tokens == 1 for one in going):
            prompts = self._room_for_prompts()
        planned: list[Scheduled] = []
        preempted: set[Request] = set()
        size = self.pool.block_size
        for request in going:
            if request in preempted:  # the newest are the last
                break
            pending = request.num_tokens - request.num_computed_tokens
            count = min(pending, budget, prompts) if pending > 1 else min(1, budget)
            if count == 0:
                continue
            end = request.num_computed_tokens + count
            while end > len(request.blocks) * size and not self._reserve(request, count):
                if is_ahead:
                    return []
                newest = self.running[-1]
                self._preempt(newest)
                preempted.add(newest)
                if newest is request:
                    break
            else:
                planned.append(Scheduled(request, count, count == pending))
                budget -= count
                if pending > 1:
                    prompts -= count
        if not preempted:
            planned += self._admit(min(budget, prompts), self.max_num_seqs - len(going))
        return planned

    def _room_for_prompts(self) -> int:
        """How many tokens of prompts a step may have beside decoding requests."""
        first = islice(self.waiting, _COUNTED_WAITING)
        waiting = sum(request.num_pending_tokens for request in first)
        room = max(_PROMPT_ROOM * self._prompt_rate, waiting / _STEPS_TO_CATCH_UP)
        budget = self.max_num_batched_tokens
        return max(1, int(min(max(room, budget / _LEAST_PROMPTS), budget / _MOST_PROMPTS)))

    def advance(self, planned: list[Scheduled]) -> None:
        """Book a step that is launched and drawn; its tokens are not read yet."""
        self._prompt_rate += (self._num_arrived_tokens - self._prompt_rate) / _AVERAGED_STEPS
        self._num_arrived_tokens = 0
        size = self.pool.block_size
        for scheduled in planned:
            request = scheduled.request
            if request.finish_reason is None:
                request.num_computed_tokens += scheduled.num_new_tokens
                if request.num_computed_tokens >= (len(request.block_keys) + 1) * size:
                    self._remember_full_blocks(request)
                if scheduled.draws_token:
                    request.num_unread_tokens = 1
                    request.num_tokens += 1

    def settle(self, request: Request, token: int) -> None:
        """Book the token that an advanced step has drawn for a request that goes on."""
        request.num_unread_tokens = 0
        outputs = request.output_token_ids
        outputs.append(token)
        if token in request.stop_token_ids and len(outputs) > request.params.min_tokens:
            request.finish_reason = "stop"
            request.stop_token_id = token
        elif request.num_tokens >= request.max_total_tokens:
            request.finish_reason = "length"
        else:
            return
        self.running.remove(request)
        self._release(request)

    def _admit(self, budget: int, num_places: int) -> list[Scheduled]:
        planned: list[Scheduled] = []
        while self.waiting and budget > 0 and len(planned) < num_places:
            request = self.waiting[0]
            if request.params.prompt_logprobs is None:
                # The last token is always computed: the next one is drawn from its logits.
                known = request.tokens(0, request.num_tokens - 1)
                request.blocks, request.block_keys = self.pool.match(
                    known, request.cache_salt, request.block_keys
                )
            request.num_computed_tokens = len(request.blocks) * self.pool.block_size
            pending = request.num_pending_tokens
            count = min(pending, budget)
            if not self._reserve(request, count):
                keys = request.block_keys  # for the next attempt, so that it need not hash again
                self._release(request)
                request.block_keys = keys
                break
            if not request.num_preemptions:
                request.num_cached_tokens = request.num_computed_tokens
                self.pool.count_query(request.num_tokens, request.num_computed_tokens)
            self.waiting.popleft()
            self.running.append(request)
            planned.append(Scheduled(request, count, count == pending))
            budget -= count
        return planned

    def _reserve(self, request: Request, count: int) -> bool:
        """Give the request the blocks it lacks for `count` more tokens; False if there are not
        enough."""
        total = -(-(request.num_computed_tokens + count) // self.pool.block_size)
        missing = total - len(request.blocks)
        if missing > self.pool.num_available:
            return False
        request.blocks += self.pool.allocate(missing)
        return True

    def _preempt(self, request: Request) -> None:
        self.running.remove(request)
        self._release(request)
        request.num_preemptions += 1
        self.num_preemptions += 1
        self.waiting.appendleft(request)

    def _release(self, request: Request) -> None:
        self.pool.release(request.blocks)
        request.blocks = []
        request.block_keys = []
        request.num_computed_tokens = 0

    def _remember_full_blocks(self, request: Request) -> None:
        size = self.pool.block_size
        while (len(request.block_keys) + 1) * size <= request.num_computed_tokens:
            index = len(request.block_keys)
            parent = request.block_keys[-1] if request.block_keys else None
            tokens = request.tokens(index * size, (index + 1) * size)
            key = block_key(parent, tokens, request.cache_salt)
            request.block_keys.append(key)
            self.pool.remember(request.blocks[index], key)
