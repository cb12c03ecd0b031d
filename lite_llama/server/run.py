"""`lite-llama serve`: load, warm up, listen, drain."""

import asyncio
import contextlib
import gc
import logging
import os
import signal
import socket
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import uvicorn
import uvloop

from lite_llama.checkpoint.default_model import DEFAULT_MODEL_NAME, find_default_model
from lite_llama.checkpoint.reader import open_checkpoint
from lite_llama.errors import ConfigError
from lite_llama.model_text import ModelText, read_tokenizer
from lite_llama.server.app import App
from lite_llama.server.async_engine import AsyncEngine, Limits
from lite_llama.server.config import ServeConfig
from lite_llama.server.connection import BoundedConnection
from lite_llama.server.engine_host import EngineHost, EngineProcess, await_ready
from lite_llama.server.metrics import Metrics
from lite_llama.server.service import Service
from lite_llama.server.tracing import Tracer, open_tracer
from lite_llama.server.wire import Ready

log = logging.getLogger("lite_llama.server")

_KEEP_ALIVE_S = 30
# A thread that tokenizes a prompt gets its turn from a busy loop after so long, not after 5 ms.
_SWITCH_S = 0.0005
# Objects between two looks for cycles; with Python's own 700 a busy loop stops for one every few
# milliseconds.
_GC_THRESHOLDS = (10_000, 20, 100)
# After the last answer, so that clients read it before the connections close.
_CLOSE_S = 2.0


@dataclass
class Phases:
    """What starting up took, phase by phase."""

    report: Callable[[str], None]
    started: float = field(default_factory=time.perf_counter)

    def phase(self, name: str, duration_s: float) -> None:
        """Report one phase."""
        self.report(f"{name:<24} {duration_s:6.2f} s")

    def total(self, name: str) -> None:
        """Report the time since the beginning."""
        self.phase(name, time.perf_counter() - self.started)


class _Server(uvicorn.Server):
    """uvicorn without its signal handlers: signals drain first (see `_Drain`)."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        """Leave the signals alone."""
        yield


def serve(
    model: str | None,
    config: ServeConfig,
    settings: dict[str, Any],
    phases: Phases,
    engine_main: str = "lite_llama.server.engine_process",
) -> int:
    """Serve a model until a signal or the engine's death; the exit code of the process.

    The engine is a child process, whose body is the module `engine_main`. `settings` are
    EngineConfig's. Raises ConfigError if the address cannot be bound, and what LLM raises.
    """
    tracer = open_tracer(config.otlp_traces_endpoint)
    listener = _bind(config)
    try:
        served = start_engine(model, settings, phases.phase, engine_main)
        sys.setswitchinterval(_SWITCH_S)
        gc.freeze()  # what is here now stays; to look through it takes tens of milliseconds
        gc.set_threshold(*_GC_THRESHOLDS)
        try:
            return uvloop.run(_serve(served, config, tracer, listener, phases))
        finally:
            served.engine.kill()
    finally:
        listener.close()
        if tracer is not None:
            tracer.close()


def _bind(config: ServeConfig) -> socket.socket:
    """Bind before loading: a port in use is reported at once."""
    family = socket.AF_INET6 if ":" in config.host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((config.host, config.port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"cannot listen on {config.host}:{config.port}: {error.strerror}; "
            "choose another --host or --port"
        ) from None
    return listener


def served_name(model: str | None) -> str:
    """What a model is called if nobody gave it a name."""
    return DEFAULT_MODEL_NAME if model is None else model


@dataclass(frozen=True)
class Served:
    """A model to serve: its engine, which is ready, and its text side."""

    engine: EngineHost
    ready: Ready
    text: ModelText
    name: str


def start_engine(
    model: str | None,
    settings: dict[str, Any],
    report: Callable[[str, float], None],
    engine_main: str = "lite_llama.server.engine_process",
) -> Served:
    """Load a model: its weights in a child process, and meanwhile the rest of it in this one.

    `report(phase, seconds)` is told of the child's progress. Raises what LLM raises.
    """
    engine = EngineProcess(model, settings, engine_main)
    try:
        checkpoint = open_checkpoint(find_default_model() if model is None else model)
        tokenizer = read_tokenizer(checkpoint)
        ready = await_ready(engine, report)
        text = ModelText(checkpoint, tokenizer, ready.max_model_len)
    except BaseException:
        engine.kill()
        raise
    return Served(engine, ready, text, served_name(model))


def create_service(served: Served, config: ServeConfig) -> Service:
    """What answers the requests for a model, within its limits. Call it on the event loop."""
    metrics = Metrics()
    limits = Limits(
        max_sequences=config.max_num_queued_reqs or 4 * served.ready.max_num_seqs,
        max_queued_tokens=config.max_num_queued_tokens or 16 * served.ready.max_model_len,
    )
    engine = AsyncEngine(served.engine, served.text.tokenizer, limits, metrics)
    service = Service(served.text, engine, config, metrics, served.name)
    metrics.watch(lambda: engine.figures, lambda: service.is_ready)
    return service


def create_server(
    served: Served, config: ServeConfig, tracer: Tracer | None = None
) -> tuple[uvicorn.Server, Service]:
    """The HTTP server of a model, and what it serves. Call it on the event loop."""
    service = create_service(served, config)
    server = _Server(
        uvicorn.Config(
            App(service, config, tracer),
            http=BoundedConnection,
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,  # nothing asks for a client's address
            timeout_keep_alive=_KEEP_ALIVE_S,
            timeout_graceful_shutdown=int(_CLOSE_S),
            ssl_certfile=config.ssl_certfile,
            ssl_keyfile=config.ssl_keyfile,
        )
    )
    return server, service


async def _serve(
    served: Served,
    config: ServeConfig,
    tracer: Tracer | None,
    listener: socket.socket,
    phases: Phases,
) -> int:
    server, service = create_server(served, config, tracer)
    ending = _Ending(service.engine, served.engine, server, config)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, ending.on_signal)
    watch = asyncio.create_task(ending.watch())
    host, port = listener.getsockname()[:2]
    scheme = "https" if config.ssl_certfile else "http"
    phases.report(f"{'sampling defaults':<24} {service.described_defaults}")
    phases.total("ready")
    phases.report(f"{service.names[0]} on {scheme}://{f'[{host}]' if ':' in host else host}:{port}")
    await server.serve(sockets=[listener])
    watch.cancel()
    if ending.exit_code == 0:  # an engine that hangs cannot be waited for
        await service.engine.stop()
    return ending.exit_code


class _Ending:
    """How a server ends: drained by a signal, at once by a second one, or by its engine's death."""

    def __init__(
        self,
        engine: AsyncEngine,
        host: EngineHost,
        server: uvicorn.Server,
        config: ServeConfig,
    ) -> None:
        self.exit_code = 0
        self._engine = engine
        self._host = host
        self._server = server
        self._config = config
        self._draining: asyncio.Task[None] | None = None

    def on_signal(self) -> None:
        """First: refuse new requests and finish the open ones. Second: exit."""
        if self._draining is not None:
            log.warning("exiting at once")
            self._exit()
        self._engine.draining = True
        log.info("draining %d requests", self._engine.num_reserved)
        self._draining = asyncio.create_task(self._drain())

    async def _drain(self) -> None:
        await self._engine.drain(self._config.drain_s)
        self._server.should_exit = True

    async def watch(self) -> None:
        """Notice an engine that has died or hangs, and end the server."""
        reason = await self._engine.watch(self._config.step_timeout_s)
        log.error("the engine has died: %s", reason)
        self.exit_code = 1
        # The clients' error events go out first.
        await asyncio.sleep(0.2)
        self._server.should_exit = True
        await asyncio.sleep(_CLOSE_S + 1.0)
        self._exit()

    def _exit(self) -> None:
        self._host.kill()
        os._exit(1)
