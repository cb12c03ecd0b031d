"""The engine's side of a server: one loop owns the engine and does nothing else.

It takes commands between two steps and tells after each step, in one message, what it brought. The
loop runs in a thread, or in a process of its own (`engine_process`); it cannot tell which.
A failure stays with the requests it belongs to: an exception in a step ends those of that step, and
only repeated ones, or a lost device, end the engine.
"""

import asyncio
import contextlib
import logging
import selectors
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import replace
from typing import Any

import torch

from lite_llama.engine.engine import Engine
from lite_llama.engine.request import Grammar
from lite_llama.engine.sampling_params import SamplingParams
from lite_llama.errors import EngineError, RequestError
from lite_llama.server.wire import (
    Abort,
    Add,
    Channel,
    Command,
    Died,
    Ended,
    Figures,
    PeerGone,
    Ready,
    Refused,
    Step,
    Stop,
    decode_command,
)
from lite_llama.text.grammar import GrammarCompiler, GrammarSpec
from lite_llama.text.tokenizer import Tokenizer

log = logging.getLogger("lite_llama.server")

# An idle loop wakes so often, to show that it lives.
IDLE_PROBE_S = 2.0
# And while a grammar is compiled, for which a request waits.
_COMPILING_PROBE_S = 0.2
# So many failed steps in a row, and the engine counts as broken.
MAX_FAILED_STEPS = 3
MakeGrammar = Callable[[], Grammar]

# The last word of a loop may take so long to leave.
_LAST_WORD_S = 1.0


class EngineLoop:
    """Runs an Engine for whoever has the other end of a socket pair.

    What that end does not read in time is kept here: sequences end at their own limits, so what a
    hung reader leaves behind is bounded by what was admitted, and the engine never waits for it.
    """

    def __init__(self, engine: Engine, tokenizer: Tokenizer) -> None:
        self._engine = engine
        self._bell = _Bell()
        self._compilers = _Compilers(
            GrammarCompiler(tokenizer, engine.model.vocab_size, engine.eos_token_ids), self._bell
        )
        self._lost: str | None = None
        engine.on_worker_lost(self._lose)
        self._unstarted: set[str] = set()
        self._num_failed_steps = 0
        self._stopping = False

    def run(self, sock: socket.socket) -> bool:
        """Serve one end of a pair until it closes or says Stop; whether the engine still works."""
        channel = Channel(sock)
        plan = self._engine.plan
        try:
            channel.send(Ready(plan.max_model_len, plan.max_num_seqs))
            with selectors.DefaultSelector() as selector:
                selector.register(sock, selectors.EVENT_READ)
                selector.register(self._bell, selectors.EVENT_READ)
                while not self._stopping:
                    self._turn(channel, selector)
        except PeerGone:
            return True
        except BaseException as error:
            log.error("the engine has failed", exc_info=error)
            _send_last(channel, Died(f"{type(error).__name__}: {error}"))
            return False
        finally:
            self._compilers.close()
            self._bell.close()
            channel.close()
        return True

    def _lose(self, reason: str) -> None:
        """In another thread: a rank that shares the model is lost, and all with it."""
        self._lost = reason
        self._bell.ring()

    def _turn(self, channel: Channel, selector: selectors.BaseSelector) -> None:
        """Take the commands that have come, make a step if there is work, and tell of both."""
        idle_s = _COMPILING_PROBE_S if self._compilers.are_busy else IDLE_PROBE_S
        if _await(channel, selector, 0.0 if self._engine.has_requests else idle_s):
            for payload in channel.receive():
                self._obey(decode_command(payload), channel)
        self._bell.hush()
        if self._lost is not None:
            raise EngineError(self._lost)
        channel.flush()
        for add, made in self._compilers.take():
            self._add_compiled(add, made, channel)
        if self._engine.has_requests:
            self._step(channel)
        elif not channel.has_unsent:
            now = time.monotonic()
            channel.send(Step([], self._figures(), now, now, []))

    def _obey(self, command: Command, channel: Channel) -> None:
        match command:
            case Add(grammar=None):
                self._add(command, None, channel)
            case Add(grammar=GrammarSpec() as spec):
                self._compilers.start(command, spec)
            case Abort():
                self._compilers.forget(command.request_ids)
                self._abort(command.request_ids)
            case Stop():
                self._stopping = True

    def _add_compiled(self, add: Add, made: Future[MakeGrammar], channel: Channel) -> None:
        try:
            make = made.result()
        except RequestError as error:
            channel.send(Refused(add.request_ids, str(error), error.param))
        except Exception as error:
            log.error("a grammar could not be compiled", exc_info=error)
            channel.send(Ended(add.request_ids))
        else:
            self._add(add, make, channel)

    def _add(self, add: Add, make_grammar: MakeGrammar | None, channel: Channel) -> None:
        try:
            for index, request_id in enumerate(add.request_ids):
                self._engine.add(
                    request_id,
                    add.prompt_token_ids,
                    _params_of(add.params, index),
                    cache_salt=add.cache_salt,
                    grammar=None if make_grammar is None else make_grammar(),
                )
                self._unstarted.add(request_id)
        except RequestError as error:
            self._abort(add.request_ids)
            channel.send(Refused(add.request_ids, str(error), error.param))
        except Exception as error:
            log.error("a request could not be queued", exc_info=error)
            self._abort(add.request_ids)
            channel.send(Ended(add.request_ids))

    def _abort(self, request_ids: list[str]) -> None:
        for request_id in request_ids:
            self._unstarted.discard(request_id)
            self._engine.abort(request_id)

    def _step(self, channel: Channel) -> None:
        begun = time.monotonic()
        try:
            outputs = self._engine.step()
        except Exception as error:  # noqa: BLE001 - contained: the batch fails, the engine goes on
            self._fail_batch(error, channel)
            outputs = []
        else:
            self._num_failed_steps = 0
        started = self._take_started()
        channel.send(Step(outputs, self._figures(), begun, time.monotonic(), started))

    def _take_started(self) -> list[str]:
        """Those that no longer wait since the last step."""
        if not self._unstarted:
            return []
        waiting = {request.request_id for request in self._engine.scheduler.waiting}
        started = self._unstarted - waiting
        self._unstarted -= started
        return list(started)

    def _fail_batch(self, error: Exception, channel: Channel) -> None:
        """End the requests that ran in a failed step; those that wait stay."""
        log.error("a step failed", exc_info=error)
        self._num_failed_steps += 1
        scheduler = self._engine.scheduler
        running = [request.request_id for request in scheduler.running]
        # The device, or a rank that shares the model, until the process ends.
        is_lost = isinstance(error, torch.AcceleratorError | EngineError)
        if is_lost or not running or self._num_failed_steps >= MAX_FAILED_STEPS:
            raise error
        self._abort(running)
        if isinstance(error, torch.OutOfMemoryError):
            # What a step needs beyond the buffers made at the start grows with its tokens.
            torch.cuda.empty_cache()
            half = scheduler.max_num_batched_tokens // 2
            scheduler.max_num_batched_tokens = max(scheduler.max_num_seqs, half)
        channel.send(Ended(running))

    def _figures(self) -> Figures:
        scheduler = self._engine.scheduler
        pool = scheduler.pool
        return Figures(
            len(scheduler.running),
            len(scheduler.waiting),
            1.0 - pool.num_available / pool.num_blocks,
            pool.stats.num_queried_tokens,
            pool.stats.num_hit_tokens,
            scheduler.num_preemptions,
        )


def _await(channel: Channel, selector: selectors.BaseSelector, limit_s: float) -> bool:
    """Wait until there is something to read or to write; whether the channel can be read."""
    wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if channel.has_unsent else 0)
    if selector.get_key(channel.sock).events != wanted:
        selector.modify(channel.sock, wanted)
    return any(
        key.fileobj is channel.sock and events & selectors.EVENT_READ
        for key, events in selector.select(limit_s)
    )


def _send_last(channel: Channel, message: Died) -> None:
    """Send a message and see it off; for a reader that is gone or hangs, only a second."""
    end = time.monotonic() + _LAST_WORD_S
    with contextlib.suppress(PeerGone):
        channel.send(message)
        while channel.has_unsent and time.monotonic() < end:
            time.sleep(0.01)
            channel.flush()


def _params_of(params: SamplingParams, index: int) -> SamplingParams:
    """The settings of one of n completions; unchanged they need no second check."""
    if params.n == 1 and params.seed is None:
        return params
    seed = None if params.seed is None else (params.seed + index) % 2**63
    return replace(params, n=1, seed=seed)


class _Bell:
    """Wakes the loop from another thread: it can be read from `ring` to `hush`."""

    def __init__(self) -> None:
        self._bell, self._rope = socket.socketpair()
        self._bell.settimeout(0)
        self._rope.settimeout(0)

    def fileno(self) -> int:
        """For a selector."""
        return self._bell.fileno()

    def ring(self) -> None:
        """From any thread, at any time."""
        with contextlib.suppress(OSError):  # full, so that it rings already; or closed
            self._rope.send(b"!")

    def hush(self) -> None:
        """In the loop, before it looks at what there is: what comes after rings again."""
        with contextlib.suppress(BlockingIOError):
            self._bell.recv(4096)

    def close(self) -> None:
        """It rings no more."""
        self._bell.close()
        self._rope.close()


class _Compilers:
    """Compiles the grammars of requests, in threads beside the loop; rings when one is done."""

    def __init__(self, compiler: GrammarCompiler, bell: _Bell) -> None:
        self._compiler = compiler
        self._bell = bell
        self._waiting: set[str] = set()  # the first id of each request that waits for its grammar
        self._done: deque[tuple[Add, Future[MakeGrammar]]] = deque()
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def are_busy(self) -> bool:
        """Whether a request waits for its grammar."""
        return bool(self._waiting)

    def start(self, add: Add, spec: GrammarSpec) -> None:
        """Compile the grammar of a request, or find it among those kept."""
        if self._loop is None:
            self._loop = asyncio.new_event_loop()
            threading.Thread(target=self._loop.run_forever, name="grammars", daemon=True).start()
        self._waiting.add(add.request_ids[0])
        made: Future[Any] = asyncio.run_coroutine_threadsafe(
            self._compiler.compile(spec), self._loop
        )
        made.add_done_callback(lambda done: self._ring(add, done))

    def forget(self, request_ids: list[str]) -> None:
        """These no longer wait, if they did."""
        self._waiting.difference_update(request_ids)

    def take(self) -> list[tuple[Add, Future[MakeGrammar]]]:
        """Requests whose grammar is done, for better or worse, since the last call."""
        if not self._done:
            return []
        done = [self._done.popleft() for _ in range(len(self._done))]
        wanted = [pair for pair in done if pair[0].request_ids[0] in self._waiting]
        self._waiting.difference_update(add.request_ids[0] for add, _ in done)
        return wanted

    def close(self) -> None:
        """Stop taking them; what is being compiled ends by itself."""
        if self._loop is not None:
            self._loop.call_soon_threadsafe(self._loop.stop)

    def _ring(self, add: Add, done: Future[MakeGrammar]) -> None:
        """In the thread of `done`."""
        self._done.append((add, done))
        self._bell.ring()
