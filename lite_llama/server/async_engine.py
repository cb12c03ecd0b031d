"""The engine behind an event loop: one thread owns it, the loop submits, receives and aborts.

    event loop                                engine thread
    admit -> submit ----- inbox ------------> add
    Generation <--- one call a step --------- step, text, stop strings, deadlines
    abort --------------- inbox ------------> abort, before the next step

A failure stays with the request it belongs to: a broken grammar ends its own request, an exception
in a step ends the requests of that step, and only repeated ones, or a lost device, end the engine.
"""

import asyncio
import contextlib
import faulthandler
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

import torch

from lite_llama.completion import Completion, TextChunk
from lite_llama.engine.engine import Engine
from lite_llama.engine.request import Grammar, StepOutput
from lite_llama.engine.sampling_params import SamplingParams
from lite_llama.errors import EngineError, RequestError
from lite_llama.server.metrics import Metrics
from lite_llama.server.problems import Problem, overloaded, refused
from lite_llama.text.tokenizer import Tokenizer

# An idle engine thread wakes so often, to show that it lives.
IDLE_PROBE_S = 2.0
# So often is looked whether a step hangs.
_WATCH_INTERVAL_S = 1.0
# So many failed steps in a row, and the engine counts as broken.
MAX_FAILED_STEPS = 3
# After a failed batch, the log names the cause and the clients this.
_STEP_FAILED = "the engine failed while it worked on this request; try again"
_DIED = "the engine has stopped; the server is going down"


@dataclass(frozen=True)
class Limits:
    """Bounds on admitted work: sequences in all, and prompt tokens not computed yet."""

    max_sequences: int
    max_queued_tokens: int
    retry_after_s: int = 1


@dataclass(frozen=True)
class Job:
    """A request ready for the engine. `make_grammar` gives each completion its own."""

    model: str  # the name it was asked for by
    prompt_token_ids: Sequence[int]
    params: SamplingParams
    deadline: float  # time.monotonic()
    arrived: float  # time.monotonic()
    cache_salt: str = ""
    make_grammar: Callable[[], Grammar] | None = None


class Generation:
    """The completions of one job: an asynchronous iterator over the chunks of each step.

    Iteration raises the Problem that ended it early. `close` must be called when nobody listens
    any more; it aborts what still runs.
    """

    def __init__(self, engine: "AsyncEngine", job: Job, tokenizer: Tokenizer | None) -> None:
        self.job = job
        self.completions = [
            Completion.begin(
                engine.next_id(), index, job.params, len(job.prompt_token_ids), tokenizer
            )
            for index in range(job.params.n)
        ]
        self._engine = engine
        self._ready: list[TextChunk] = []
        self._waiter: asyncio.Future[None] | None = None
        self._num_unfinished = job.params.n
        self._problem: Problem | None = None
        self.closed = False
        self.has_first_token = False
        self.first_token_at: float | None = None  # time.monotonic()

    def __aiter__(self) -> "Generation":
        return self

    async def __anext__(self) -> list[TextChunk]:
        """The chunks that have come since the last call, waiting for at least one."""
        while not self._ready:
            if self._problem is not None:
                raise self._problem
            if self._num_unfinished == 0:
                raise StopAsyncIteration
            self._waiter = asyncio.get_running_loop().create_future()
            await self._waiter
        chunks, self._ready = self._ready, []
        for chunk in chunks:
            if chunk.finish_reason is not None:
                self._num_unfinished -= 1
        return chunks

    def deliver(self, chunk: TextChunk) -> None:
        """On the event loop: hand over one chunk."""
        if self.first_token_at is None:
            self.first_token_at = time.monotonic()
            self._engine.note_first_token(self)
        self._ready.append(chunk)
        self._wake()

    def fail(self, problem: Problem) -> None:
        """On the event loop: end with a problem, behind the chunks already there."""
        if self._problem is None:
            self._problem = problem
            self._wake()

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    @property
    def num_generated_tokens(self) -> int:
        """Tokens of all completions so far."""
        return sum(len(completion.token_ids) for completion in self.completions)

    @property
    def num_cached_tokens(self) -> int:
        """Prompt tokens that the prefix cache had."""
        return self.completions[0].num_cached_tokens

    def close(self) -> None:
        """Give up whatever still runs; safe to call twice."""
        self._engine.release(self)


@dataclass
class _Sequence:
    """One completion inside the engine thread."""

    generation: Generation
    completion: Completion
    last_token_at: float = field(default_factory=time.monotonic)


class AsyncEngine:
    """Runs an Engine in its own thread. All methods but `_run` and below are the event loop's."""

    def __init__(
        self, engine: Engine, tokenizer: Tokenizer | None, limits: Limits, metrics: Metrics
    ) -> None:
        self.limits = limits
        self.death: str | None = None
        self.died = asyncio.Event()
        self.draining = False
        self._engine = engine
        self._tokenizer = tokenizer
        self._metrics = metrics
        self._ids = count()
        self._open: set[Generation] = set()
        self._num_sequences = 0
        self._num_reserved = 0
        self._queued_tokens = 0
        self._loop = asyncio.get_running_loop()
        self._inbox: deque[Callable[[], None]] = deque()
        self._arrival = threading.Condition()
        self._stopping = False
        self._live: dict[str, _Sequence] = {}
        self._unstarted: dict[str, float] = {}  # arrival of those that have not run yet
        self._num_failed_steps = 0
        self._heartbeat = time.monotonic()
        engine.on_worker_lost(lambda reason: self._post(lambda: self.declare_dead(reason)))
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    # --- on the event loop

    def next_id(self) -> str:
        """An id that no other sequence of this engine has."""
        return str(next(self._ids))

    @property
    def num_reserved(self) -> int:
        """Requests admitted and not yet answered to the end."""
        return self._num_reserved

    @property
    def is_busy(self) -> bool:
        """Whether the engine thread has work."""
        return self._engine.has_requests or bool(self._inbox)

    @property
    def silence_s(self) -> float:
        """Seconds since the engine thread last began a step or an idle probe."""
        return time.monotonic() - self._heartbeat

    @contextlib.contextmanager
    def reserve(self, num_sequences: int) -> Iterator[None]:
        """Count a request as admitted for as long as the context lasts; enter it before
        tokenizing. Raises the 503 of a server that is full or ending."""
        if self.death is not None:
            raise overloaded(_DIED, 10)
        if self.draining:
            raise overloaded("the server is shutting down; send this to another one", 10)
        if (
            self._num_sequences + num_sequences > self.limits.max_sequences
            or self._queued_tokens >= self.limits.max_queued_tokens
        ):
            self._metrics.shed.inc()
            raise overloaded(
                f"{self._num_sequences} sequences with {self._queued_tokens} prompt tokens are "
                f"waiting or running, limit {self.limits.max_sequences} and "
                f"{self.limits.max_queued_tokens}; try again later",
                self.limits.retry_after_s,
            )
        self._num_sequences += num_sequences
        self._num_reserved += 1
        try:
            yield
        finally:
            self._num_sequences -= num_sequences
            self._num_reserved -= 1

    def submit(self, job: Job) -> Generation:
        """Queue a job, inside of a reservation."""
        if self.death is not None:
            raise overloaded(_DIED, 10)
        generation = Generation(self, job, self._tokenizer)
        self._open.add(generation)
        self._queued_tokens += len(job.prompt_token_ids)
        self._send(lambda: self._add(generation))
        return generation

    def note_first_token(self, generation: Generation) -> None:
        """The prompt of a generation is computed: it no longer counts as queued."""
        if not generation.has_first_token:
            generation.has_first_token = True
            self._queued_tokens -= len(generation.job.prompt_token_ids)

    def release(self, generation: Generation) -> None:
        """Nobody listens to this generation any more: abort what runs, and make room."""
        if generation.closed:
            return
        generation.closed = True
        self.note_first_token(generation)
        self._open.discard(generation)
        if any(completion.finish_reason is None for completion in generation.completions):
            self._send(lambda: self._drop(generation))

    async def drain(self, limit_s: float) -> None:
        """Refuse new requests, wait for the open ones, and end those that outlast the limit."""
        self.draining = True
        end = time.monotonic() + limit_s
        while self._num_reserved and time.monotonic() < end and self.death is None:
            await asyncio.sleep(0.02)
        for generation in list(self._open):
            generation.fail(overloaded("the server shut down before the answer was complete", 10))

    async def stop(self) -> None:
        """End the thread."""

        def end() -> None:
            self._stopping = True

        self._send(end)
        await asyncio.to_thread(self._thread.join, 5.0)

    async def watch(self, step_timeout_s: float) -> str:
        """Wait until the engine has died or a step hangs; why. Every request has ended then."""
        while not self.died.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.died.wait(), _WATCH_INTERVAL_S)
            if self.is_busy and self.silence_s > step_timeout_s:
                faulthandler.dump_traceback(sys.stderr)
                self.declare_dead(f"a step took over {self.silence_s:.0f} s")
        return str(self.death)

    def declare_dead(self, reason: str) -> None:
        """End every request and admit no more; whoever runs the server waits for `died`."""
        if self.death is None:
            self.death = reason
            for generation in list(self._open):
                generation.fail(overloaded(_DIED, 10))
            self.died.set()

    def _send(self, command: Callable[[], None]) -> None:
        with self._arrival:
            self._inbox.append(command)
            self._arrival.notify()

    # --- in the engine thread

    def _post(self, action: Callable[[], None]) -> None:
        try:
            self._loop.call_soon_threadsafe(action)
        except RuntimeError:  # the loop has ended: nobody is left to hear of it
            self._stopping = True

    def _run(self) -> None:
        try:
            while not self._stopping:
                self._heartbeat = time.monotonic()
                self._take_commands()
                self._expire()
                if self._engine.has_requests:
                    self._step()
        except BaseException as error:  # noqa: BLE001 - the thread must not end unnoticed
            reason = f"{type(error).__name__}: {error}"
            self._post(lambda: self.declare_dead(reason))

    def _take_commands(self) -> None:
        with self._arrival:
            if not self._inbox and not self._engine.has_requests:
                self._arrival.wait(IDLE_PROBE_S)
            commands = list(self._inbox)
            self._inbox.clear()
        for command in commands:
            command()

    def _add(self, generation: Generation) -> None:
        if generation.closed:
            return
        job = generation.job
        try:
            for completion in generation.completions:
                self._engine.add(
                    completion.request_id,
                    job.prompt_token_ids,
                    _params_of(job.params, completion.index),
                    cache_salt=job.cache_salt,
                    grammar=None if job.make_grammar is None else job.make_grammar(),
                )
                self._live[completion.request_id] = _Sequence(generation, completion)
                self._unstarted[completion.request_id] = job.arrived
        except RequestError as error:
            self._end(generation, refused(error))
        except Exception as error:  # noqa: BLE001 - only this request is concerned
            self._metrics.log_error("a request could not be queued", error)
            self._end(generation, Problem(500, _STEP_FAILED))

    def _drop(self, generation: Generation) -> None:
        for completion in generation.completions:
            self._unstarted.pop(completion.request_id, None)
            if self._live.pop(completion.request_id, None) is not None:
                completion.finish_reason = "abort"
                self._metrics.finished("abort")
            self._engine.abort(completion.request_id)

    def _end(self, generation: Generation, problem: Problem) -> None:
        self._drop(generation)
        self._post(lambda: generation.fail(problem))

    def _expire(self) -> None:
        now = time.monotonic()
        late = {
            id(sequence.generation): sequence.generation
            for sequence in self._live.values()
            if sequence.generation.job.deadline <= now
        }
        for generation in late.values():
            waited = now - generation.job.arrived
            self._end(
                generation,
                Problem(504, f"not complete after {waited:.1f} s; raise timeout", "timeout"),
            )

    def _step(self) -> None:
        begun = time.monotonic()
        try:
            outputs = self._engine.step()
        except Exception as error:  # noqa: BLE001 - contained: the batch fails, the engine goes on
            self._fail_batch(error)
            return
        self._num_failed_steps = 0
        self._observe_queue(begun)
        now = time.monotonic()
        delivered = [pair for output in outputs if (pair := self._take(output, now)) is not None]
        if delivered:
            self._metrics.generated.inc(len(delivered))
            self._post(lambda: _deliver(delivered))

    def _take(self, output: StepOutput, now: float) -> tuple[Generation, TextChunk] | None:
        """One sequence's token of this moment: its chunk, or None if that ended the request."""
        sequence = self._live.get(output.request_id)
        if sequence is None:
            return None
        generation, completion = sequence.generation, sequence.completion
        if output.error is not None:
            self._end(generation, Problem(500, "the grammar of this request failed"))
            return None
        try:
            chunk = completion.push(output)
        except Exception as error:  # noqa: BLE001 - only this request is concerned
            self._metrics.log_error("a token could not be turned into text", error)
            self._end(generation, Problem(500, _STEP_FAILED))
            return None
        self._observe(sequence, now)
        if completion.finish_reason is not None:
            del self._live[output.request_id]
            self._engine.abort(output.request_id)
            self._metrics.finished(completion.finish_reason)
        return generation, chunk

    def _observe_queue(self, step_begun: float) -> None:
        """Book how long those waited whose first step this was."""
        if not self._unstarted:
            return
        waiting = {request.request_id for request in self._engine.scheduler.waiting}
        for request_id in self._unstarted.keys() - waiting:
            arrived = self._unstarted.pop(request_id)
            self._metrics.queue_time.observe(max(0.0, step_begun - arrived))

    def _observe(self, sequence: _Sequence, now: float) -> None:
        job = sequence.generation.job
        if len(sequence.completion.token_ids) == 1:
            self._metrics.first_token(now - job.arrived, len(job.prompt_token_ids))
        else:
            self._metrics.inter_token.observe(now - sequence.last_token_at)
        sequence.last_token_at = now
        if sequence.completion.finish_reason is not None:
            self._metrics.end_to_end.observe(now - job.arrived)

    def _fail_batch(self, error: Exception) -> None:
        """End the requests that ran in a failed step; those that wait stay."""
        self._metrics.log_error("a step failed", error)
        self._num_failed_steps += 1
        scheduler = self._engine.scheduler
        running = {request.request_id for request in scheduler.running}
        # The device, or another rank, until the process ends.
        is_lost = isinstance(error, torch.AcceleratorError | EngineError)
        if is_lost or not running or self._num_failed_steps >= MAX_FAILED_STEPS:
            raise error
        for generation in _generations(self._live[one] for one in running if one in self._live):
            self._end(generation, Problem(500, _STEP_FAILED))
        if isinstance(error, torch.OutOfMemoryError):
            # What a step needs beyond the buffers made at the start grows with its tokens.
            torch.cuda.empty_cache()
            half = scheduler.max_num_batched_tokens // 2
            scheduler.max_num_batched_tokens = max(scheduler.max_num_seqs, half)


def _params_of(params: SamplingParams, index: int) -> SamplingParams:
    """The settings of one of n completions; unchanged they need no second check."""
    if params.n == 1 and params.seed is None:
        return params
    seed = None if params.seed is None else (params.seed + index) % 2**63
    return replace(params, n=1, seed=seed)


def _generations(sequences: Iterable[_Sequence]) -> list[Generation]:
    return list({id(one.generation): one.generation for one in sequences}.values())


def _deliver(delivered: list[tuple[Generation, TextChunk]]) -> None:
    for generation, chunk in delivered:
        generation.deliver(chunk)
