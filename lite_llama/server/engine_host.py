"""Where an engine's loop runs: a thread of this process, or a process of its own.

Both are the other end of a socket pair. Nothing in here imports torch, so that the process which
speaks HTTP needs neither torch nor weights.
"""

import contextlib
import faulthandler
import selectors
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from typing import Protocol

from lite_llama import errors
from lite_llama.errors import EngineError, LiteLlamaError
from lite_llama.server.wire import (
    Channel,
    Died,
    Event,
    Failed,
    Load,
    PeerGone,
    Phase,
    Ready,
    decode_event,
)

# What a child may take to end by itself once it has been told to.
_END_S = 5.0
# Its search path is its parent's. Without -P it would look for modules where it was started, too.
_START = """
import importlib, sys
sys.path[:] = sys.argv[3:]
sys.exit(importlib.import_module(sys.argv[2]).main(int(sys.argv[1])))
"""


class EngineHost(Protocol):
    """A running engine loop, seen from the other end."""

    @property
    def channel(self) -> Channel:
        """The way to it."""

    def dump_stacks(self) -> None:
        """Write to stderr what each of its threads is doing."""

    def join(self) -> None:
        """Wait until it has ended, which it was told to do."""

    def kill(self) -> None:
        """End it, whatever it does. A thread cannot be: it ends with its process."""

    def last_words(self) -> str:
        """Why a loop ended that did not say so."""


class EngineThread:
    """An engine's loop in a thread of this process."""

    def __init__(self, run: Callable[[socket.socket], object]) -> None:
        ours, theirs = socket.socketpair()
        self.channel = Channel(ours)
        self._thread = threading.Thread(target=run, args=(theirs,), name="engine", daemon=True)
        self._thread.start()

    def dump_stacks(self) -> None:
        """See EngineHost."""
        faulthandler.dump_traceback(sys.stderr)

    def join(self) -> None:
        """See EngineHost."""
        self._thread.join(_END_S)

    def kill(self) -> None:
        """See EngineHost."""

    def last_words(self) -> str:
        """See EngineHost."""
        return "its thread has ended"


class EngineProcess:
    """An engine's loop in a child process, which loads the model first (`engine_process.main`).

    The child ends with this process, however that ends: by the end of its socket, and on Linux by a
    signal when the thread that has started it is gone.
    """

    def __init__(
        self,
        model: str | None,
        settings: Mapping[str, str | int | float | bool | None],
        main: str = "lite_llama.server.engine_process",
    ) -> None:
        """`settings` are EngineConfig's; `main` is the module whose `main` the child runs."""
        ours, theirs = socket.socketpair()
        with theirs:
            number = theirs.fileno()
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-c", _START, str(number), main, *sys.path],
                pass_fds=[number],
                stdin=subprocess.DEVNULL,
                start_new_session=True,  # Ctrl-C at the terminal is not meant for it
            )
        self.channel = Channel(ours)
        self.channel.send(Load(model, dict(settings), time.monotonic()))

    @property
    def pid(self) -> int:
        """The child's process id."""
        return self._process.pid

    def dump_stacks(self) -> None:
        """See EngineHost. The child writes them itself, even while it hangs in foreign code."""
        self._process.send_signal(signal.SIGUSR1)

    def join(self) -> None:
        """See EngineHost; a child that does not end is killed."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_S)
        self.kill()

    def kill(self) -> None:
        """See EngineHost."""
        self._process.kill()
        self._process.wait()

    def last_words(self) -> str:
        """See EngineHost."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(0.2)
        code = self._process.poll()
        if code is None:
            return "its process has closed its socket"
        if code < 0:
            return f"its process was ended by {signal.Signals(-code).name}"
        return f"its process has ended with code {code}"


def await_ready(host: EngineHost, report: Callable[[str, float], None]) -> Ready:
    """Wait until the engine takes requests; `report(phase, seconds)` is told of its progress.

    Raises what loading the model has raised, or EngineError if the engine has just ended.
    """
    channel = host.channel
    with selectors.DefaultSelector() as selector:
        selector.register(channel.sock, selectors.EVENT_READ)
        while True:
            selector.select()
            try:
                events = [decode_event(payload) for payload in channel.receive()]
            except PeerGone:
                raise EngineError(
                    f"the engine has ended while it loaded the model: {host.last_words()}; "
                    "its own messages are above"
                ) from None
            for event in events:
                if isinstance(event, Ready):
                    return event  # behind it are only signs of life, as nothing is asked yet
                _follow(event, report)


def _follow(event: Event, report: Callable[[str, float], None]) -> None:
    """Report a phase, or raise what has gone wrong."""
    if isinstance(event, Phase):
        report(event.name, event.duration_s)
    if isinstance(event, Failed):
        kind = getattr(errors, event.error, EngineError)
        if not issubclass(kind, LiteLlamaError):
            kind = EngineError
        raise kind(event.message)
    if isinstance(event, Died):
        raise EngineError(event.reason)
