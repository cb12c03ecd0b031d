"""The engine's process: loads a model and runs its loop, for the process that has started it."""

import faulthandler
import gc
import os
import selectors
import signal
import socket
import time
from collections.abc import Callable

from lite_llama.engine.child_process import follow_parent
from lite_llama.errors import LiteLlamaError
from lite_llama.llm import LLM
from lite_llama.server.engine_loop import EngineLoop
from lite_llama.server.log import log_to_stderr
from lite_llama.server.wire import Channel, Failed, Load, PeerGone, Phase, decode_command


def main(descriptor: int, make_llm: Callable[..., LLM] = LLM) -> int:
    """Serve the socket `descriptor` until its other end closes; the exit code of the process."""
    follow_parent()  # which drains
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
