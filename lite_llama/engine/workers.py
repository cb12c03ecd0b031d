"""The processes of ranks 1, 2, ..., which rank 0 starts, steps, watches and ends.

Rank 0 is the process that owns the Engine. It alone schedules and draws; before each forward pass
it sends the others its inputs, and they compute it too, meeting rank 0 in every exchange. What
they send says how loading goes. A rank that ends is noticed by the end of its pipe: the model is
lost with it, so the other ranks are ended as well and every later step is an EngineError.
"""

import contextlib
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from dataclasses import fields
from multiprocessing.connection import Connection, Pipe, wait
from pathlib import Path
from typing import Any

import msgspec
import torch

from lite_llama.engine.config import EnginePlan, free_memory
from lite_llama.engine.messages import (
    Begin,
    Failed,
    FromRank,
    Join,
    Joined,
    Loaded,
    Plan,
    Start,
    ToRank,
)
from lite_llama.errors import ConfigError, EngineError
from lite_llama.models.ranks import RankGroup, is_in_group
from lite_llama.models.shards import Share

# How long a step under way may hold up the end.
_SETTLE_S = 5.0
# So long waits whoever met a broken exchange for the thread to say which rank broke it.
_GRACE_S = 0.3
# What a rank's process runs: `main` with the number of its pipe.
_MAIN = "lite_llama.engine.tp_worker"
# How often is looked whether a step's tokens have come.
_POLL_S = 20e-6


class Workers:
    """Ranks 1 up to `plan.tensor_parallel_size`, from their start to `close`."""

    def __init__(self, plan: EnginePlan, *, model: str | None, preset: str | None) -> None:
        """Start them loading `model` (a checkpoint's path) or random weights of `preset`.

        On the CPU they share torch's threads, of which rank 0 keeps its part until `close`.
        Raises ConfigError if this process is in a process group already.
        """
        if is_in_group():
            raise ConfigError(
                f"tensor_parallel_size is {plan.tensor_parallel_size}, but this process is in a "
                "process group already, limit one; close the other LLM"
            )
        size = plan.tensor_parallel_size
        self._num_threads = torch.get_num_threads()
        num_threads = max(1, self._num_threads // size)
        self.ranks = RankGroup(Share(0, size))
        self._device = plan.device
        self._folder = Path(tempfile.mkdtemp(prefix="lite-llama-"))  # mode 0700
        self._processes = _Processes(size - 1)
        self._end = weakref.finalize(self, _end, self._processes, self._folder)
        folder = self._folder
        self.on_lost(lambda _: shutil.rmtree(folder, ignore_errors=True))
        settings = _plain(plan)
        for rank in range(1, size):
            start = Start(
                rank=rank,
                device=f"cuda:{rank}" if plan.device.type == "cuda" else "cpu",
                store=str(self._folder / "ranks"),
                model=model,
                preset=preset,
                plan=settings,
                num_threads=num_threads,
            )
            self._processes.send(start, rank)
        if plan.device.type == "cpu":  # more threads than cores wait for each other, busily
            torch.set_num_threads(num_threads)

    def meet(self) -> int:
        """Wait until all have loaded and are in the group, rank 0 too.

        Returns the free bytes of the device that has least. EngineError if a rank has failed.
        """
        self._await(Loaded)
        self.send(Join())
        self.ranks.join(self._folder / "ranks", self._device)
        free = free_memory(self._device)
        # On a GPU the file stays: a thread of NCCL's looks at it from time to time.
        if self._device.type == "cpu":
            shutil.rmtree(self._folder, ignore_errors=True)
        free_bytes: list[int] = [message.free_bytes for message in self._await(Joined)]
        least = min(free, *free_bytes)
        # On the CPU, all ranks live in the same memory.
        return least if self._device.type == "cuda" else least // self.ranks.share.size

    def begin(self, num_blocks: int) -> None:
        """Have them allocate the cache and wait for steps."""
        self.send(Begin(num_blocks))

    def send(self, message: ToRank) -> None:
        """Send to all; EngineError if one is lost."""
        self._processes.send(message)

    def on_lost(self, callback: Callable[[str], None]) -> None:
        """Call `callback(reason)` when a rank is lost, from another thread; at once if one is."""
        self._processes.on_lost(callback)

    @contextlib.contextmanager
    def step(self) -> Iterator[None]:
        """Around what all ranks compute together, from the message on.

        If it ends early the ranks are out of step, and no later one could be right: the others are
        ended, and whatever was raised becomes an EngineError. So Ctrl-C waits until it is over.
        """
        with _uninterrupted():
            try:
                yield
            except EngineError:
                raise
            except BaseException as error:
                # A rank that died, rather than what rank 0 met for it, is the reason.
                self._processes.has_lost.wait(_GRACE_S)
                self._processes.lose(f"rank 0 failed: {type(error).__name__}: {error}")
                if isinstance(error, Exception):
                    raise EngineError(self._processes.last_words()) from error
                raise

    def wait_until(self, condition: Callable[[], bool]) -> None:
        """Poll until it holds; EngineError if a rank is lost, and it therefore never would."""
        while not condition():
            self._processes.check()
            time.sleep(_POLL_S)

    @property
    def is_lost(self) -> bool:
        """Whether a rank has ended, or is out of step."""
        return self._processes.lost is not None

    def settle(self) -> None:
        """Let a GPU finish what is under way, for as long as the ranks may take for it."""
        if self._device.type != "cuda":
            return
        event = torch.cuda.Event()  # type: ignore[no-untyped-call]
        event.record()
        end = time.monotonic() + _SETTLE_S
        while not (event.query() or self.is_lost or time.monotonic() > end):  # type: ignore[no-untyped-call]
            time.sleep(_POLL_S)

    def close(self) -> None:
        """End the ranks and leave the group. CUDA graphs of rank 0 must be gone; safe twice."""
        if not self._end.alive:
            return
        was_lost = self.is_lost
        self._end()
        if self._device.type == "cpu":
            torch.set_num_threads(self._num_threads)
        # A GPU may wait for the lost rank forever, and NCCL then for the GPU.
        if not (was_lost and self._device.type == "cuda"):
            self.ranks.leave(self._device)

    def _await(self, kind: type[Any]) -> list[Any]:
        """One message of this kind from each."""
        answers = []
        for _ in range(self.ranks.share.size - 1):
            message = self._processes.next_message()
            if not isinstance(message, kind):
                self._processes.lose(f"expected {kind.__name__}, not {message}")
                self._processes.check()
            answers.append(message)
        return answers


class _Processes:
    """The processes, their pipes, and the thread that started them and watches them.

    A rank asks the system to kill it with the thread that started it (`tp_worker`), so this one
    lives as long as they do.
    """

    def __init__(self, count: int) -> None:
        self.lost: str | None = None
        self.has_lost = threading.Event()
        self._pipes = [Pipe() for _ in range(count)]
        self._ends = [ours for ours, _ in self._pipes]
        self._processes: list[subprocess.Popen[bytes]] = []
        self._inbox: queue.SimpleQueue[FromRank] = queue.SimpleQueue()
        self._callbacks: list[Callable[[str], None]] = []
        self._lock = threading.Lock()
        self._is_ending = False
        self._has_started = threading.Event()
        self._thread = threading.Thread(target=self._run, name="ranks", daemon=True)
        self._thread.start()
        self._has_started.wait()

    def send(self, message: ToRank, rank: int | None = None) -> None:
        """Send to one rank, or to all; EngineError if one is lost."""
        data = msgspec.msgpack.encode(message)
        try:
            for end in self._ends if rank is None else [self._ends[rank - 1]]:
                end.send_bytes(data)
        except OSError:
            self.has_lost.wait(_GRACE_S)  # the thread knows more
            self.lose("a pipe has closed")
        self.check()

    def next_message(self) -> FromRank:
        """The next thing that any rank says; EngineError when one is lost."""
        self.check()
        message = self._inbox.get()
        self.check()
        return message

    def check(self) -> None:
        """EngineError if a rank is lost."""
        if self.lost is not None:
            raise EngineError(self.last_words())

    def last_words(self) -> str:
        """The message of that error."""
        return f"the ranks that share the model have stopped: {self.lost}; make another LLM"

    def on_lost(self, callback: Callable[[str], None]) -> None:
        with self._lock:
            self._callbacks.append(callback)
            lost = self.lost
        if lost is not None:
            callback(lost)

    def lose(self, reason: str) -> None:
        """Book the loss of the model and kill what is left of the ranks."""
        with self._lock:
            if self.lost is not None or self._is_ending:
                return
            self.lost = reason
            callbacks = list(self._callbacks)
        for process in self._processes:
            process.kill()
        for callback in callbacks:
            callback(reason)
        self.has_lost.set()
        self._inbox.put(Failed(reason))

    def end(self) -> None:
        """Kill the processes and wait until they are gone."""
        with self._lock:
            self._is_ending = True
            self.lost = self.lost or "they were closed"
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
        self._thread.join(5.0)
        for end in self._ends:
            end.close()

    # --- in the thread

    def _run(self) -> None:
        try:
            for _, theirs in self._pipes:
                self._processes.append(_spawn(theirs))
                theirs.close()
            self._has_started.set()
            self._watch()
        except BaseException as error:  # noqa: BLE001 - with the thread, the ranks end
            self.lose(f"{type(error).__name__}: {error}")
        finally:
            self._has_started.set()

    def _watch(self) -> None:
        """Hand on what the ranks say, until all pipes have ended."""
        open_ends = dict(zip(self._ends, range(1, len(self._ends) + 1), strict=True))
        while open_ends:
            for end in wait(list(open_ends)):
                if not isinstance(end, Connection):
                    raise AssertionError(f"{end!r} is no pipe")
                try:
                    message = msgspec.msgpack.decode(end.recv_bytes(), type=FromRank)
                except (EOFError, OSError):
                    self.lose(self._how_it_ended(open_ends.pop(end)))
                    continue
                if isinstance(message, Failed):
                    self.lose(f"rank {open_ends[end]} failed: {message.reason}")
                else:
                    self._inbox.put(message)

    def _how_it_ended(self, rank: int) -> str:
        process = self._processes[rank - 1]
        with contextlib.suppress(subprocess.TimeoutExpired):
            code = process.wait(0.1)  # it has closed its pipe, and may take its time to end
            return f"rank {rank} has died (process {process.pid}, exit code {code})"
        return f"rank {rank} has died (process {process.pid})"


def _end(processes: _Processes, folder: Path) -> None:
    processes.end()
    shutil.rmtree(folder, ignore_errors=True)


def _spawn(pipe: Connection) -> "subprocess.Popen[bytes]":
    """A process that runs `tp_worker.main` on its end of a pipe, with this one's import path."""
    source = (
        f"import sys; sys.path[:] = {sys.path!r}; from {_MAIN} import main; main({pipe.fileno()})"
    )
    return subprocess.Popen(
        [sys.executable, "-c", source],
        stdin=subprocess.DEVNULL,
        stdout=2,  # stdout is for answers
        pass_fds=(pipe.fileno(),),
        start_new_session=True,  # Ctrl-C at the terminal is rank 0's to hear
    )


def _plain(plan: EnginePlan) -> Plan:
    weights = plan.precision.weights
    names = {field.name for field in fields(plan)} - {"device", "precision"}
    return Plan(
        activations=str(plan.precision.activations).removeprefix("torch."),
        weights=None if weights is None else str(weights).removeprefix("torch."),
        settings={name: getattr(plan, name) for name in names},
    )


@contextlib.contextmanager
def _uninterrupted() -> Iterator[None]:
    """Hold back SIGINT in the main thread, the only one that hears it; it is raised at the end."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    heard: list[int] = []
    before = signal.getsignal(signal.SIGINT)
    if before is None:  # set by C code, and not Python's to put back
        yield
        return
    signal.signal(signal.SIGINT, lambda number, _: heard.append(number))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
        if heard:
            signal.raise_signal(signal.SIGINT)
