"""The engine as the event loop sees it: submit, receive, abort.

    event loop                                  engine loop (engine_loop.py)
    reserve -> submit ------ Add -------------> queue, grammar
    Generation <------------ a Step a step ---- tokens
    text, stop strings
    close, deadline -------- Abort -----------> before the next step

Tokens become text where a stream asks for them, all that have come at once. Streams are told of
their tokens in rounds, and a loop that would spend more than a ninth of its time on that makes
pauses between them: a stream then finds several tokens, which become one piece of text (see
`_Rounds`). No turn of the loop does much: a few streams are told, and a few requests begin.
"""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import count

from lite_llama.completion import Completion, TextChunk
from lite_llama.engine.request import StepOutput
from lite_llama.engine.sampling_params import SamplingParams
from lite_llama.errors import RequestError
from lite_llama.server.engine_host import EngineHost
from lite_llama.server.metrics import Metrics
from lite_llama.server.problems import Problem, overloaded, refused
from lite_llama.server.wire import (
    Abort,
    Add,
    Died,
    Ended,
    Figures,
    Message,
    PeerGone,
    Refused,
    Step,
    Stop,
    decode_event,
)
from lite_llama.text.grammar import GrammarSpec
from lite_llama.text.tokenizer import Tokenizer

# So often is looked whether a step hangs.
_WATCH_INTERVAL_S = 1.0
# At least so many streams are told in a turn of the event loop, which then looks at its sockets:
# 0.2 ms. And so many that a round takes no more turns than this, as requests begin in each.
_GROUP, _TURNS = 8, 8
# The first and the last piece of a stream, with its head or end, cost as much as so many others.
_URGENT_SHARE = 2
# So many requests are begun in a turn, each of which takes about as long as 32 streams: in
# a crowd of both, neither waits for the other.
_BEGINNERS = 1
# A pause between two rounds is so many times the round before it, and at most so long.
_PAUSE_SHARE = 8.0
_MAX_PAUSE_S = 0.02
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
    """A request ready for the engine."""

    model: str  # the name it was asked for by
    prompt_token_ids: Sequence[int]
    params: SamplingParams
    deadline: float  # time.monotonic()
    arrived: float  # time.monotonic()
    cache_salt: str = ""
    grammar: GrammarSpec | None = None


@dataclass(eq=False, slots=True)
class _Sequence:
    """One completion of a job, and the tokens that have not become text yet."""

    generation: "Generation"
    completion: Completion
    arrived: list[StepOutput] = field(default_factory=list)
    last_token_at: float | None = None  # time.monotonic(), in the engine
    is_over: bool = False


class Generation:
    """The completions of one job: an asynchronous iterator over the chunks of each step.

    Iteration raises the Problem that ended it early. `close` must be called when nobody listens
    any more; it aborts what still runs.
    """

    def __init__(self, engine: "AsyncEngine", job: Job, tokenizer: Tokenizer | None) -> None:
        self.job = job
        num_prompt_tokens = len(job.prompt_token_ids)
        self.completions = [
            Completion.begin(engine.next_id(), index, job.params, num_prompt_tokens, tokenizer)
            for index in range(job.params.n)
        ]
        self.sequences = [_Sequence(self, completion) for completion in self.completions]
        self._engine = engine
        self._waiter: asyncio.Future[None] | None = None
        self._problem: Problem | None = None
        self.timer: asyncio.TimerHandle | None = None  # of its deadline
        self.is_patient = False
        self.closed = False
        self.has_first_token = False
        self.first_token_at: float | None = None  # time.monotonic()

    def __aiter__(self) -> "Generation":
        return self

    async def __anext__(self) -> list[TextChunk]:
        """What has come since the last call, in one chunk a completion; waits for at least one."""
        while True:
            if chunks := [self._engine.read(each) for each in self.sequences if each.arrived]:
                return chunks
            if self._problem is not None:
                raise self._problem
            if all(each.is_over for each in self.sequences):
                raise StopAsyncIteration
            self._waiter = self._engine.make_waiter()
            await self._waiter

    def wait_for_end(self) -> None:
        """Whoever iterates wants only the whole. Stop strings are still searched as tokens come."""
        self.is_patient = not self.job.params.stop

    def wake(self) -> None:
        """There is something to read."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def fail(self, problem: Problem) -> None:
        """End with a problem, behind the tokens already there."""
        if self._problem is None:
            self._problem = problem
            self.wake()

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


class _Rounds:
    """Tells streams that they have tokens, a group a turn of the event loop.

    First and last tokens go first. The others go in rounds: a round tells all that have some. It
    lasts until the last one has written, and the next begins no sooner than eight times as long
    after it: so most of the loop's time is left, whatever the engine's pace, and tokens that come
    during a pause are written together.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._urgent: dict[Generation, None] = {}
        self._next: dict[Generation, None] = {}
        self._round: dict[Generation, None] = {}
        self._begun = 0.0  # time.monotonic(); 0 if no round is under way
        self._earliest = 0.0  # when the next round may begin
        self._timer: asyncio.TimerHandle | None = None
        self._is_telling = False
        self._group = _GROUP

    def add(self, generation: Generation) -> None:
        """This one has something to read."""
        self._next[generation] = None

    def add_urgent(self, generation: Generation) -> None:
        """This one has its first or its last tokens to read."""
        self._urgent[generation] = None

    def begin(self) -> None:
        """Tell those whom there is to tell, unless that is under way."""
        if not self._is_telling and (self._urgent or self._begins_round()):
            self._tell()

    def _begins_round(self) -> bool:
        """Whether there is someone to tell in a round, and the pause is over."""
        if not self._next or self._timer is not None:
            return False
        now = time.monotonic()
        pause = self._earliest - now
        if pause > 0:
            self._timer = self._loop.call_later(pause, self._end_pause)
            return False
        self._begun = now
        self._round, self._next = self._next, self._round
        self._group = max(_GROUP, len(self._round) // _TURNS)
        return True

    def _end_pause(self) -> None:
        self._timer = None
        self.begin()

    def _tell(self) -> None:
        self._is_telling = True
        room = self._group
        while self._urgent and room > 0:
            self._take(self._urgent).wake()
            room -= _URGENT_SHARE
        while self._round and room > 0:
            self._take(self._round).wake()
            room -= 1
        self._loop.call_soon(self._go_on)  # behind what those do who have been told

    def _take(self, line: dict[Generation, None]) -> Generation:
        """The first of a line; one who is told of all that has come need not be told again."""
        generation = next(iter(line))
        for each in (self._urgent, self._round, self._next):
            each.pop(generation, None)
        return generation

    def _go_on(self) -> None:
        if self._begun and not self._round:
            now = time.monotonic()
            self._earliest = now + min(_PAUSE_SHARE * (now - self._begun), _MAX_PAUSE_S)
            self._begun = 0.0
        self._is_telling = False
        if self._urgent or self._round:
            self._tell()
        else:
            self.begin()


class _Turns:
    """Lets so many requests begin in one turn of the event loop, in the order they came.

    Those that come together would else be read, tokenized and queued in one go, and all streams
    would wait for that.
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._num_left = _BEGINNERS
        self._waiting: deque[asyncio.Future[None]] = deque()
        self._is_renewing = False

    async def take(self) -> None:
        """Return when it is the caller's turn."""
        if not self._is_renewing:
            self._is_renewing = True
            self._loop.call_soon(self._renew)
        if self._num_left > 0:
            self._num_left -= 1
            return
        waiter = self._loop.create_future()
        self._waiting.append(waiter)
        await waiter

    def _renew(self) -> None:
        self._num_left = _BEGINNERS
        while self._waiting and self._num_left:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_result(None)
                self._num_left -= 1
        self._is_renewing = self._num_left < _BEGINNERS
        if self._is_renewing:
            self._loop.call_soon(self._renew)


class AsyncEngine:
    """Speaks with an engine loop. All of it belongs to one event loop."""

    def __init__(
        self, host: EngineHost, tokenizer: Tokenizer | None, limits: Limits, metrics: Metrics
    ) -> None:
        self.limits = limits
        self.death: str | None = None
        self.died = asyncio.Event()
        self.draining = False
        self.figures = Figures()
        self._host = host
        self._channel = host.channel
        self._tokenizer = tokenizer
        self._metrics = metrics
        self._ids = count()
        self._open: set[Generation] = set()
        self._live: dict[str, _Sequence] = {}  # those that the engine works on
        self._num_sequences = 0
        self._num_reserved = 0
        self._queued_tokens = 0
        self._heard = time.monotonic()
        self._last_ended = 0.0  # of the last step, in the engine
        self._stopping = False
        self._is_parted = False
        self._loop = asyncio.get_running_loop()
        self._rounds = _Rounds(self._loop)
        self._turns = _Turns(self._loop)
        self._loop.add_reader(self._channel.sock, self._on_readable)

    def make_waiter(self) -> asyncio.Future[None]:
        """Something to wait for."""
        return self._loop.create_future()

    def next_id(self) -> str:
        """An id that no other sequence of this engine has."""
        return str(next(self._ids))

    @property
    def num_reserved(self) -> int:
        """Requests admitted and not yet answered to the end."""
        return self._num_reserved

    @property
    def is_busy(self) -> bool:
        """Whether the engine has work."""
        return bool(self._live)

    @property
    def silence_s(self) -> float:
        """Seconds since the engine's last sign of life, or since it was given work."""
        return time.monotonic() - self._heard

    async def turn(self) -> None:
        """Wait until the event loop has time for another request; call it before reading one."""
        await self._turns.take()

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
        """Queue a job, inside of a reservation. What the engine has to say against it, its
        grammar included, is raised by the iteration."""
        if self.death is not None:
            raise overloaded(_DIED, 10)
        generation = Generation(self, job, self._tokenizer)
        # Stop strings are this side's business.
        params = replace(job.params, stop=None) if job.params.stop else job.params
        ids = [completion.request_id for completion in generation.completions]
        if not self._live:
            self._heard = time.monotonic()
        try:
            token_ids = list(job.prompt_token_ids)
            self._channel.queue(Add(ids, token_ids, params, job.cache_salt, job.grammar))
        except OverflowError:
            raise refused(
                RequestError("prompt has a token id of over 64 bits", param="prompt")
            ) from None
        self._open.add(generation)
        self._queued_tokens += len(job.prompt_token_ids)
        self._live.update(zip(ids, generation.sequences, strict=True))
        generation.timer = self._loop.call_later(
            max(0.0, job.deadline - time.monotonic()), self._expire, generation
        )
        self._flush()
        return generation

    def read(self, sequence: _Sequence) -> TextChunk:
        """Make text of the tokens that have arrived; Problem 500 if that fails."""
        arrived, sequence.arrived = sequence.arrived, []
        try:
            chunk = sequence.completion.push(arrived)
        except Exception as error:  # noqa: BLE001 - only this request is concerned
            self._metrics.log_error("tokens could not be turned into text", error)
            self._drop(sequence.generation)
            raise Problem(500, _STEP_FAILED) from None
        if chunk.finish_reason is not None and not sequence.is_over:
            self._finish(sequence, chunk)
        return chunk

    def release(self, generation: Generation) -> None:
        """Nobody listens to this generation any more: abort what runs, and make room."""
        if generation.closed:
            return
        generation.closed = True
        if generation.timer is not None:
            generation.timer.cancel()
        self._note_first_token(generation)
        self._open.discard(generation)
        self._drop(generation)
        generation.sequences.clear()  # which know it: else they are left to the collector

    async def drain(self, limit_s: float) -> None:
        """Refuse new requests, wait for the open ones, and end those that outlast the limit."""
        self.draining = True
        end = time.monotonic() + limit_s
        while self._num_reserved and time.monotonic() < end and self.death is None:
            await asyncio.sleep(0.02)
        for generation in list(self._open):
            generation.fail(overloaded("the server shut down before the answer was complete", 10))

    async def stop(self) -> None:
        """End the engine loop, which may have died."""
        self._stopping = True
        self._send(Stop())
        self._flush()
        await asyncio.to_thread(self._host.join)
        self._part()
        self._channel.close()

    async def watch(self, step_timeout_s: float) -> str:
        """Wait until the engine has died or a step hangs; why. Every request has ended then."""
        while not self.died.is_set():
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self.died.wait(), _WATCH_INTERVAL_S)
            if self.is_busy and self.silence_s > step_timeout_s:
                self._host.dump_stacks()
                self.declare_dead(f"a step took over {self.silence_s:.0f} s")
        return str(self.death)

    def declare_dead(self, reason: str) -> None:
        """End every request and admit no more; whoever runs the server waits for `died`."""
        if self.death is None:
            self.death = reason
            for generation in list(self._open):
                generation.fail(overloaded(_DIED, 10))
            self.died.set()

    # --- towards the engine

    def _send(self, command: Message) -> None:
        """Send with what else this turn of the event loop has to say."""
        if not self._channel.has_unsent:
            self._loop.call_soon(self._flush)
        self._channel.queue(command)

    def _flush(self) -> None:
        if self._is_parted:
            return
        try:
            self._channel.flush()
        except PeerGone:
            self._lose()
            return
        if self._channel.has_unsent:
            self._loop.add_writer(self._channel.sock, self._on_writable)

    def _on_writable(self) -> None:
        try:
            self._channel.flush()
        except PeerGone:
            self._lose()
            return
        if not self._channel.has_unsent:
            self._loop.remove_writer(self._channel.sock)

    def _drop(self, generation: Generation) -> None:
        """Abort what still runs of a generation."""
        running = []
        for sequence in generation.sequences:
            if not sequence.is_over:
                sequence.is_over = True
                sequence.completion.finish_reason = "abort"
                self._metrics.finished("abort")
            if self._live.pop(sequence.completion.request_id, None) is not None:
                running.append(sequence.completion.request_id)
        if running and self.death is None:
            self._send(Abort(running))

    def _end(self, generation: Generation, problem: Problem) -> None:
        self._drop(generation)
        generation.fail(problem)

    def _expire(self, generation: Generation) -> None:
        if not all(sequence.is_over for sequence in generation.sequences):
            waited = time.monotonic() - generation.job.arrived
            self._end(
                generation,
                Problem(504, f"not complete after {waited:.1f} s; raise timeout", "timeout"),
            )

    def _finish(self, sequence: _Sequence, last: TextChunk) -> None:
        """Book the end of a sequence; the engine does not know yet of one by a stop string."""
        sequence.is_over = True
        request_id = sequence.completion.request_id
        if self._live.pop(request_id, None) is not None:
            self._send(Abort([request_id]))
        self._metrics.finished(last.finish_reason or "abort")
        if sequence.last_token_at is not None:
            arrived = sequence.generation.job.arrived
            self._metrics.end_to_end.observe(sequence.last_token_at - arrived)

    # --- from the engine

    def _on_readable(self) -> None:
        try:
            payloads = self._channel.receive()
        except PeerGone:
            self._lose()
            return
        self._heard = time.monotonic()
        for payload in payloads:
            event = decode_event(payload)
            match event:
                case Step():
                    self._take_step(event)
                case Refused(request_ids=ids):
                    self._end_all(ids, refused(RequestError(event.message, param=event.param)))
                case Ended(request_ids=ids):
                    self._end_all(ids, Problem(500, _STEP_FAILED))
                case Died():
                    self.declare_dead(event.reason)

    def _take_step(self, step: Step) -> None:
        self.figures = step.figures
        live = self._live
        for request_id in step.started:
            if (sequence := live.get(request_id)) is not None:
                waited = step.begun - sequence.generation.job.arrived
                self._metrics.queue_time.observe(max(0.0, waited))
        num_in_time = 0
        for output in step.outputs:
            sequence = live.get(output.request_id)
            if sequence is not None:  # else aborted, and the engine had not heard of it
                num_in_time += self._take_output(sequence, output, step.ended)
        self._metrics.inter_token.observe(step.ended - self._last_ended, num_in_time)
        self._last_ended = step.ended
        self._rounds.begin()
        if step.outputs:
            self._metrics.generated.inc(len(step.outputs))

    def _take_output(self, sequence: _Sequence, output: StepOutput, at: float) -> bool:
        """Book a token; whether its sequence had one in the step before, as nearly all of them.

        Their times between two tokens are the same, and left to be counted together.
        """
        generation = sequence.generation
        if output.error is not None:
            self._end(generation, Problem(500, "the grammar of this request failed"))
            return False
        sequence.arrived.append(output)
        last_at = sequence.last_token_at
        is_first, is_last = last_at is None, output.finish_reason is not None
        if is_last:
            del self._live[output.request_id]
        if last_at is None:
            self._note_start(generation, at)
        elif last_at != self._last_ended:
            self._metrics.inter_token.observe(at - last_at)
        sequence.last_token_at = at
        if is_last or (is_first and not generation.is_patient):
            self._rounds.add_urgent(generation)
        elif not generation.is_patient:
            self._rounds.add(generation)
        return last_at == self._last_ended

    def _note_start(self, generation: Generation, at: float) -> None:
        """A sequence has its first token."""
        job = generation.job
        self._metrics.first_token(at - job.arrived, len(job.prompt_token_ids))
        if generation.first_token_at is None:
            generation.first_token_at = at
            self._note_first_token(generation)

    def _note_first_token(self, generation: Generation) -> None:
        """The prompt of a generation is computed: it no longer counts as queued."""
        if not generation.has_first_token:
            generation.has_first_token = True
            self._queued_tokens -= len(generation.job.prompt_token_ids)

    def _end_all(self, request_ids: Sequence[str], problem: Problem) -> None:
        for request_id in request_ids:
            if (sequence := self._live.pop(request_id, None)) is not None:
                self._end(sequence.generation, problem)

    def _lose(self) -> None:
        """The other end is gone, as it was told to be, or because it has died."""
        self._part()
        if not self._stopping:
            self.declare_dead(self._host.last_words())

    def _part(self) -> None:
        self._is_parted = True
        self._loop.remove_reader(self._channel.sock)
        self._loop.remove_writer(self._channel.sock)
