"""The engine: requests come and go, each step advances all that run."""

import secrets
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lite_llama.cache.block_pool import BlockPool
from lite_llama.engine import batch, sampler
from lite_llama.engine.config import EnginePlan
from lite_llama.engine.request import Grammar, Request, StepOutput, TokenLogprobs
from lite_llama.engine.runner import Runner
from lite_llama.engine.sampling_params import SamplingParams
from lite_llama.engine.scheduler import Scheduled, Scheduler
from lite_llama.errors import ContextTooLong, RequestError
from lite_llama.models.decoder import Decoder


@dataclass
class _Live:
    """A request inside the engine, with the prompt log-probabilities gathered so far."""

    request: Request
    prompt_logprobs: list[TokenLogprobs | None] = field(default_factory=lambda: [None])


class Engine:
    """Continuous batching over one model. Not thread-safe: one thread owns it."""

    def __init__(
        self, decoder: Decoder, plan: EnginePlan, num_blocks: int, eos_token_ids: frozenset[int]
    ) -> None:
        self.plan = plan
        self.model = decoder.config
        self.eos_token_ids = eos_token_ids
        self.runner = Runner(decoder, plan, num_blocks)
        self.scheduler = Scheduler(
            BlockPool(num_blocks, plan.block_size, plan.prefix_caching),
            plan.max_num_seqs,
            plan.max_num_batched_tokens,
        )
        self._live: dict[str, _Live] = {}

    @property
    def has_requests(self) -> bool:
        """Whether a step would find work."""
        return self.scheduler.has_requests

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
        total = limit if params.max_tokens is None else min(limit, num_prompt + params.max_tokens)
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

    def step(self) -> list[StepOutput]:
        """Advance every request that can run; one output for each that drew a token."""
        planned = batch.order(self.scheduler.plan())
        if not planned:
            return []
        logits = self._take_prompt_logprobs(planned, self.runner.run(planned))
        drawing = [scheduled.request for scheduled in planned if scheduled.draws_token]
        masks = _grammar_masks(drawing)  # while a GPU still works on the logits
        tokens, logprobs = _draw(drawing, logits, masks)
        self.scheduler.commit(planned, tokens)
        return [
            self._output(request, tokens[request.request_id], logprobs.get(request.request_id))
            for request in drawing
        ]

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
                rows.append(self.runner.run([Scheduled(request, count)], all_logits=True))
                request.num_computed_tokens += count
        finally:
            pool.release(request.blocks)
        return torch.cat(rows)

    def _check_prompt(self, token_ids: Sequence[int]) -> None:
        if not token_ids:
            raise RequestError("prompt is empty, expected at least one token", param="prompt")
        low, high = min(token_ids), max(token_ids)
        if low < 0 or high >= self.model.vocab_size:
            raise RequestError(
                f"prompt has token id {low if low < 0 else high}, limit "
                f"0..{self.model.vocab_size - 1}; use ids of this model's vocabulary",
                param="prompt",
            )

    def _take_prompt_logprobs(self, planned: list[Scheduled], logits: Tensor) -> Tensor:
        """Book the rows asked for prompt log-probabilities; return the rows to draw from."""
        if not any(batch.wants_prompt_rows(scheduled) for scheduled in planned):
            return logits
        kept: list[int] = []
        row = 0
        for scheduled in planned:
            count = len(batch.wanted_rows(scheduled, 0))
            if batch.wants_prompt_rows(scheduled):
                self._book_prompt_logprobs(scheduled, logits[row : row + count])
            if scheduled.draws_token:
                kept.append(row + count - 1)
            row += count
        return logits[kept]

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
        live = self._live[request.request_id]
        first = len(request.output_token_ids) == 1
        _advance_grammar(request, token_id)
        if request.grammar_error is not None:
            self.abort(request.request_id)
            request.finish_reason = "error"
        elif request.finish_reason is not None:
            del self._live[request.request_id]
        asked = request.params.prompt_logprobs is not None
        return StepOutput(
            request_id=request.request_id,
            token_id=token_id,
            logprobs=logprobs,
            prompt_logprobs=live.prompt_logprobs if first and asked else None,
            finish_reason=request.finish_reason,
            stop_token_id=request.stop_token_id,
            num_cached_tokens=request.num_cached_tokens,
            error=request.grammar_error,
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


def _grammar_masks(requests: list[Request]) -> dict[int, bytes]:
    """Allowed tokens by row, of the requests that have a grammar."""
    masks = {}
    for row, request in enumerate(requests):
        if request.grammar is not None:
            try:
                masks[row] = request.grammar.mask()
            except Exception as error:  # noqa: BLE001 - whatever it is concerns this request only
                request.grammar_error = str(error)
    return masks


def _advance_grammar(request: Request, token_id: int) -> None:
    if request.grammar is None or request.grammar_error or request.stop_token_id is not None:
        return
    try:
        request.grammar.accept(token_id)
    except Exception as error:  # noqa: BLE001 - as above
        request.grammar_error = str(error)


@torch.inference_mode()
def _draw(
    requests: list[Request], logits: Tensor, masks: dict[int, bytes]
) -> tuple[dict[str, int], dict[str, TokenLogprobs]]:
    """Tokens and, where asked, log-probabilities by request id; logits [num_requests, vocab]."""
    if not requests:
        return {}, {}
    asking = [i for i, request in enumerate(requests) if request.params.logprobs is not None]
    plain = logits[asking]  # a copy: sampling changes the logits
    drawn = sampler.sample(logits, requests, masks).tolist()
    tokens = {request.request_id: token for request, token in zip(requests, drawn, strict=True)}
    if not asking:
        return tokens, {}
    described = sampler.logprobs_of(
        plain, [drawn[i] for i in asking], [requests[i].params.logprobs or 0 for i in asking]
    )
    rows = zip(asking, described, strict=True)
    return tokens, {requests[i].request_id: row for i, row in rows}
