"""The engine: requests come and go, each step advances all that run."""

import secrets
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lite_llama.cache.block_pool import BlockPool
from lite_llama.engine import batch, sampler
from lite_llama.engine.config import EnginePlan
from lite_llama.engine.logits import Logits
from lite_llama.engine.recording import recorder
from lite_llama.engine.request import Grammar, Request, StepOutput, TokenLogprobs
from lite_llama.engine.runner import Runner
from lite_llama.engine.sampling_params import SamplingParams
from lite_llama.engine.scheduler import Scheduled, Scheduler
from lite_llama.engine.workers import Workers
from lite_llama.errors import ContextTooLong, RequestError
from lite_llama.models.decoder import Decoder


@dataclass
class _Live:
    """A request inside the engine, with the prompt log-probabilities gathered so far."""

    request: Request
    prompt_logprobs: list[TokenLogprobs | None] = field(default_factory=lambda: [None])


class _ReadBack:
    """Tokens on their way from the device, where they are `source`, to the host.

    `told`: where the launch that draws them stores them for the host too, if it does.
    """

    def __init__(self, tokens: Tensor, told: Tensor | None = None) -> None:
        self.source = tokens
        self._host = _sent(tokens) if told is None else told
        self._event: torch.cuda.Event | None = None
        if tokens.is_cuda:
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    def has_come(self) -> bool:
        """Whether `wait` would return at once."""
        return self._event is None or bool(self._event.query())  # type: ignore[no-untyped-call]

    def wait(self) -> list[int]:
        """The tokens, when they have arrived."""
        if self._event is not None:
            self._event.synchronize()
        listed: list[int] = self._host.tolist()
        return listed


def _sent(tokens: Tensor) -> Tensor:
    """A copy for the host, there once an event recorded after this has come."""
    if not tokens.is_cuda:
        return tokens.clone()  # the next draw may overwrite them
    from lite_llama.kernel_lib.host_copy import store_to_host

    host = torch.empty(tokens.shape, dtype=tokens.dtype, pin_memory=True)
    store_to_host(tokens.contiguous(), host)
    return host


@dataclass(frozen=True)
class _Computed:
    """A step whose logits are under way: its shares, and a row for each request that draws."""

    planned: list[Scheduled]
    drawing: list[Request]
    logits: Logits


@dataclass(frozen=True)
class _Drawn:
    """A step whose tokens are under way, one for each request that draws."""

    planned: list[Scheduled]
    drawing: list[Request]
    tokens: _ReadBack
    logprobs: dict[str, TokenLogprobs]

    def unread(self, planned: list[Scheduled]) -> batch.Unread | None:
        """The tokens of those in the plan of the step behind this one."""
        wanted = [share.request for share in planned if share.request.num_unread_tokens]
        if not wanted:
            return None
        if wanted == self.drawing:
            return batch.Unread(self.tokens.source, range(len(wanted)))
        rows = {request: row for row, request in enumerate(self.drawing)}
        return batch.Unread(self.tokens.source, [rows[request] for request in wanted])


class Engine:
    """Continuous batching over one model. Not thread-safe: one thread owns it.

    With `workers`, `decoder` is rank 0's share of the model, and they have the others.
    """

    def __init__(
        self,
        decoder: Decoder,
        plan: EnginePlan,
        num_blocks: int,
        eos_token_ids: frozenset[int],
        workers: Workers | None = None,
    ) -> None:
        self.plan = plan
        self.model = decoder.config
        self.eos_token_ids = eos_token_ids
        if workers is not None:
            workers.begin(num_blocks)
        self._workers = workers
        self.runner = Runner(decoder, plan, num_blocks, workers)
        self.scheduler = Scheduler(
            BlockPool(num_blocks, plan.block_size, plan.prefix_caching),
            plan.max_num_seqs,
            plan.max_num_batched_tokens,
        )
        self._rows = batch.Rows()
        self._sampler = sampler.Sampler(
            plan.max_num_seqs,
            self.model.vocab_size,
            plan.device,
            None if self.runner.graphs is None else recorder(plan),
        )
        self._live: dict[str, _Live] = {}
        # On a GPU the next step is under way before a step's tokens are read: the host's work, in
        # here and in the caller, is done in its shadow. A CPU would only keep the tokens back.
        self.looks_ahead = plan.device.type == "cuda"
        self._ahead: _Computed | _Drawn | None = None

    @property
    def has_requests(self) -> bool:
        """Whether a step would find work."""
        return self.scheduler.has_requests or self._ahead is not None

    def add(
        self,
        request_id: str,
        prompt_token_ids: Sequence[int],
        params: SamplingParams,
        *,
        cache_salt: str = "",
        grammar: Grammar | None = None,
    ) -> None:
        """Queue a request; RequestError or ContextTooLong if it cannot be served."""
        if request_id in self._live:
            raise RequestError(f"request id {request_id!r} is in use; choose another")
        self._check_prompt(prompt_token_ids)
        params.check_vocabulary(self.model.vocab_size)
        if grammar is not None:
            _check_grammar_can_end(params)
        num_prompt, limit = len(prompt_token_ids), self.plan.max_model_len
        if num_prompt >= limit:
            raise ContextTooLong(
                f"prompt has {num_prompt} tokens, limit {limit - 1} (max_model_len {limit} with "
                "at least one token of answer); shorten it or raise max_model_len",
                param="prompt",
            )
        if params.max_tokens is None:  # as long as context and cache allow
            capacity = self.scheduler.pool.num_blocks * self.plan.block_size
            total = max(num_prompt + 1, min(limit, capacity))
        else:
            total = min(limit, num_prompt + params.max_tokens)
        eos = frozenset() if params.ignore_eos else self.eos_token_ids
        request = Request(
            request_id=request_id,
            prompt_token_ids=list(prompt_token_ids),
            params=params,
            seed=secrets.randbits(63) if params.seed is None else params.seed,
            stop_token_ids=eos | frozenset(params.stop_token_ids),
            max_total_tokens=total,
            cache_salt=cache_salt,
            grammar=grammar,
        )
        self.scheduler.add(request)
        self._live[request_id] = _Live(request)

    def abort(self, request_id: str) -> None:
        """End a request and free its blocks; an unknown id is one that has just finished."""
        live = self._live.pop(request_id, None)
        if live is not None:
            self.scheduler.abort(live.request)

    def on_worker_lost(self, callback: Callable[[str], None]) -> None:
        """Call `callback(reason)` from another thread if another rank is lost, and all with it."""
        if self._workers is not None:
            self._workers.on_lost(callback)

    @property
    def is_lost(self) -> bool:
        """Whether another rank is lost: every step is an EngineError, and a GPU may hang."""
        return self._workers is not None and self._workers.is_lost

    def close(self) -> None:
        """End the other ranks, if there are any; no step may follow then. Safe to call twice."""
        if self._workers is None:
            return
        self._ahead = None
        self._workers.settle()
        if not self.is_lost:
            self.runner.close()
        self._workers.close()

    def step(self) -> list[StepOutput]:
        """Advance every request that can run; one output for each that drew a token.

        EngineError if ranks share the model and one is lost.
        """
        step, self._ahead = self._ahead, None
        if step is None:
            with self._stage("compute"):
                step = self._compute()
        if step is None:
            return []
        if isinstance(step, _Computed):
            with self._stage("draw"):
                step = self._draw(step)
        self.scheduler.advance(step.planned)
        if self.looks_ahead:
            with self._stage("compute ahead"):
                self._ahead = self._compute_ahead(step)
        with self._stage("read tokens"):
            return self._finish(step)

    def _stage(self, name: str) -> AbstractContextManager[None]:
        """A name over what the host does, for Nsight Systems."""
        on_gpu = self.plan.device.type == "cuda"
        return torch.cuda.nvtx.range(name) if on_gpu else nullcontext()

    def _compute(self) -> _Computed | None:
        planned = self._rows.order(self.scheduler.plan())
        if not planned:
            return None
        logits = self._take_prompt_logprobs(planned, self.runner.run(planned))
        return _Computed(planned, _drawing(planned), logits)

    def _compute_ahead(self, step: _Drawn) -> _Computed | _Drawn | None:
        """The step behind `step`, whose tokens are on the device.

        It is drawn as well, unless a request's draw hangs on the host having read those tokens.
        None if the host has to read them, or the logits, before it goes on.
        """
        planned = self._rows.order(self.scheduler.plan(is_ahead=True))
        if not planned or any(map(batch.wants_prompt_rows, planned)):
            return None
        drawing, unread = _drawing(planned), step.unread(planned)
        is_free = all(map(_draws_unread, drawing))
        # Other ranks draw too, and do not know the requests.
        is_known = self._workers is None or sampler.is_greedy(drawing)
        with torch.inference_mode():
            if is_free and is_known and self.runner.replays(planned):
                draw = self._sampler.in_graph(drawing)
                read_back = _ReadBack(*self.runner.draw(planned, unread, draw))
            else:
                logits = self.runner.run(planned, unread)
                if not is_free:
                    return _Computed(planned, drawing, logits)
                read_back = _ReadBack(self._sampler.sample(logits, drawing))
        return _Drawn(planned, drawing, read_back, {})

    def _draw(self, step: _Computed) -> _Drawn:
        tokens, logprobs = self._sampler.draw(step.logits, step.drawing)
        return _Drawn(step.planned, step.drawing, _ReadBack(tokens), logprobs)

    def _finish(self, step: _Drawn) -> list[StepOutput]:
        """Read a step's tokens and book them; requests that ended meanwhile are passed over."""
        if self._workers is not None:  # one that is gone would be waited for forever
            self._workers.wait_until(step.tokens.has_come)
        drawn = step.tokens.wait()
        outputs = []
        for request, token in zip(step.drawing, drawn, strict=True):
            if request.finish_reason is None:
                self.scheduler.settle(request, token)
                logprobs = step.logprobs.get(request.request_id)
                outputs.append(self._output(request, token, logprobs))
        return outputs

    def logits(self, token_ids: Sequence[int]) -> Tensor:
        """Logits float32 [num_tokens, vocab] of a whole text, beside whatever else is running."""
        self._check_prompt(token_ids)
        if len(token_ids) > self.plan.max_model_len:
            raise ContextTooLong(
                f"{len(token_ids)} tokens, limit max_model_len {self.plan.max_model_len}; "
                "shorten them or raise it"
            )
        pool = self.scheduler.pool
        needed = -(-len(token_ids) // self.plan.block_size)
        if needed > pool.num_available:
            raise RequestError(
                f"{len(token_ids)} tokens need {needed} KV blocks, limit {pool.num_available} "
                "free now; wait or raise num_blocks"
            )
        request = Request("", list(token_ids), SamplingParams(), 0, frozenset(), len(token_ids))
        request.blocks = pool.allocate(needed)
        rows = []
        try:
            while request.num_pending_tokens:
                count = min(request.num_pending_tokens, self.plan.max_num_batched_tokens)
                share = Scheduled(request, count, draws_token=False)
                rows.append(self.runner.run([share], all_logits=True).values)
                request.num_computed_tokens += count
        finally:
            pool.release(request.blocks)
        return torch.cat(rows)

    def _check_prompt(self, token_ids: Sequence[int]) -> None:
        if not token_ids:
            raise RequestError("prompt is empty, expected at least one token", param="prompt")
        if set(map(type, token_ids)) != {int}:  # quicker than a loop
            raise RequestError("prompt has an entry that is no integer token id", param="prompt")
        low, high = min(token_ids), max(token_ids)
        if low < 0 or high >= self.model.vocab_size:
            raise RequestError(
                f"prompt has token id {low if low < 0 else high}, limit "
                f"0..{self.model.vocab_size - 1}; use ids of this model's vocabulary",
                param="prompt",
            )

    def _take_prompt_logprobs(self, planned: list[Scheduled], logits: Logits) -> Logits:
        """Book the rows asked for prompt log-probabilities; return the rows to draw from."""
        if not any(map(batch.wants_prompt_rows, planned)):
            return logits
        kept: list[int] = []
        row = 0
        for scheduled in planned:
            count = len(batch.wanted_rows(scheduled, 0))
            if batch.wants_prompt_rows(scheduled):
                self._book_prompt_logprobs(scheduled, logits.values[row : row + count])
            if scheduled.draws_token:
                kept.append(row + count - 1)
            row += count
        return Logits(logits.values[kept], in_place=False)

    def _book_prompt_logprobs(self, scheduled: Scheduled, logits: Tensor) -> None:
        request = scheduled.request
        start = request.num_computed_tokens
        booked = self._live[request.request_id].prompt_logprobs
        del booked[start + 1 :]  # a preempted prompt is computed, and booked, again
        following = request.prompt_token_ids[start + 1 : start + 1 + scheduled.num_new_tokens]
        if following:
            num_top = [request.params.prompt_logprobs or 0] * len(following)
            booked += sampler.logprobs_of(logits[: len(following)], following, num_top)

    def _output(
        self, request: Request, token_id: int, logprobs: TokenLogprobs | None
    ) -> StepOutput:
        prompt_logprobs = None
        if not request.is_plain:
            if request.params.prompt_logprobs is not None and len(request.output_token_ids) == 1:
                prompt_logprobs = self._live[request.request_id].prompt_logprobs
            _advance_grammar(request, token_id)
        if request.grammar_error is not None:
            self.abort(request.request_id)
            request.finish_reason = "error"
        elif request.finish_reason is not None:
            del self._live[request.request_id]
        return StepOutput(
            request.request_id,
            token_id,
            logprobs,
            prompt_logprobs,
            request.finish_reason,
            request.stop_token_id,
            request.num_cached_tokens,
            request.grammar_error,
        )


def _check_grammar_can_end(params: SamplingParams) -> None:
    """A grammar ends an answer with the model's end token, which must be allowed to come."""
    for name in ("ignore_eos", "min_tokens"):
        if getattr(params, name):
            raise RequestError(
                f"{name} is {getattr(params, name)}, but structured output must be free to end; "
                "leave it out",
                param=name,
            )


def _advance_grammar(request: Request, token_id: int) -> None:
    if request.grammar is None or request.grammar_error or request.stop_token_id is not None:
        return
    try:
        request.grammar.accept(token_id)
    except Exception as error:  # noqa: BLE001 - whatever it is concerns this request only
        request.grammar_error = str(error)


def _drawing(planned: list[Scheduled]) -> list[Request]:
    return [scheduled.request for scheduled in planned if scheduled.draws_token]


def _draws_unread(request: Request) -> bool:
    """Whether the host can launch a draw before it has read the token before."""
    return not request.needs_host and len(request.output_token_ids) >= request.params.min_tokens
