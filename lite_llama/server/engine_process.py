"""The engine's process: loads a model and runs its loop, for the process that has started it."""

import ctypes
import faulthandler
import gc
import os
import selectors
import signal
import socket
import sys
import time
from collections.abc import Callable

from lite_llama.errors import LiteLlamaError
from lite_llama.llm import LLM
from lite_llama.server.engine_loop import EngineLoop
from lite_llama.server.log import log_to_stderr
from lite_llama.server.wire import Channel, Failed, Load, PeerGone, Phase, decode_command

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def main(descriptor: int, make_llm: Callable[..., LLM] = LLM) -> int:
    """Serve the socket `descriptor` until its other end closes; the exit code of the process."""
    _end_with_parent()
    faulthandler.register(signal.SIGUSR1, all_threads=True)
    log_to_stderr()
    sock = socket.socket(fileno=descriptor)
    channel = Channel(sock)
    try:
        llm = _load(channel, make_llm)
    except LiteLlamaError as error:
        channel.send(Failed(type(error).__name__, str(error)))
        return 2
    except PeerGone:
        return 1
    gc.freeze()  # what is here now stays; to look through it takes as long as many steps
    with llm:
        if not EngineLoop(llm.engine, llm.tokenizer).run(sock):
            os._exit(1)  # a lost device or rank cannot be waited for, nor closed
    return 0


def _end_with_parent() -> None:
    """A signal is for the parent, which drains; and no engine outlives it."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)


def _load(channel: Channel, make_llm: Callable[..., LLM]) -> LLM:
    begun = time.monotonic()
    load = _await_load(channel)
    channel.send(Phase("import torch", begun - load.begun))
    llm = make_llm(load.model, **load.settings)
    loaded = time.monotonic()
    channel.send(Phase("load the model", loaded - begun))
    warm_up(llm)
    channel.send(Phase("warm up", time.monotonic() - loaded))
    return llm


def _await_load(channel: Channel) -> Load:
    with selectors.DefaultSelector() as selector:
        selector.register(channel.sock, selectors.EVENT_READ)
        while True:
            selector.select()
            for payload in channel.receive():
                command = decode_command(payload)
                if isinstance(command, Load):
                    return command


def warm_up(llm: LLM) -> None:
    """One prefill and one decode step."""
    params = llm.default_sampling_params()
    for _ in zip(llm.stream("Hello", params), range(2), strict=False):
        pass
