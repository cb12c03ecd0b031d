"""Real servers on loopback: in this process, where the engine can be watched, or in another."""

import asyncio
import concurrent.futures
import json
import os
import re
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import uvloop

from lite_llama.llm import LLM
from lite_llama.server.config import ServeConfig
from lite_llama.server.engine_host import EngineThread, await_ready
from lite_llama.server.engine_loop import EngineLoop
from lite_llama.server.run import Served, create_server
from lite_llama.server.service import Service
from lite_llama.server.tracing import Tracer
from tests.server.preset import LAGS

MODEL = "SmolLM2-135M-Instruct"


def serve_here(llm: LLM) -> Served:
    """A model whose engine loop runs in a thread of this process, where it can be watched."""
    engine = EngineThread(EngineLoop(llm.engine, llm.tokenizer).run)
    return Served(engine, await_ready(engine, lambda *_: None), llm.text, MODEL)


class LocalServer:
    """A server in a thread of this process, for an engine in another one."""

    def __init__(self, llm: LLM, config: ServeConfig, tracer: Tracer | None = None) -> None:
        self.llm = llm
        self._served = serve_here(llm)
        self._listener = socket.socket()
        self._listener.bind(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.service: Service
        self._ready = threading.Event()
        self._config = config
        self._tracer = tracer
        self._thread = threading.Thread(target=lambda: uvloop.run(self._run()), daemon=True)
        self._thread.start()
        assert self._ready.wait(30)
        wait_until(lambda: httpx.get(f"{self.url}/health").status_code == 200)

    async def _run(self) -> None:
        self._server, self.service = create_server(self._served, self._config, self._tracer)
        self.loop = asyncio.get_running_loop()
        self._ready.set()
        await self._server.serve(sockets=[self._listener])
        await self.service.engine.stop()

    def stop(self) -> None:
        self._server.should_exit = True
        self._thread.join(20)
        self._listener.close()

    def post(self, path: str, body: Any, **options: Any) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", json=body, timeout=60, **options)

    def chat(self, text: str, **fields: Any) -> httpx.Response:
        messages = [{"role": "user", "content": text}]
        return self.post("/v1/chat/completions", {"messages": messages, **fields})

    def is_idle(self) -> bool:
        """No request is left anywhere, and every KV block is accounted for."""
        scheduler, pool = self.llm.engine.scheduler, self.llm.engine.scheduler.pool
        engine = self.service.engine
        pool.check()
        return (
            not scheduler.has_requests
            and pool.num_used == 0
            and pool.num_available == pool.num_blocks
            and engine.num_reserved == 0
            and engine._num_sequences == 0
            and engine._queued_tokens == 0
            and not engine._live
        )


def wait_until(condition: Any, limit_s: float = 10.0) -> None:
    """Poll until the condition holds; fail if it never does."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        try:
            if condition():
                return
        except httpx.TransportError:
            pass
        time.sleep(0.02)
    raise AssertionError(f"not true within {limit_s} s")


class ServerProcess:
    """`lite-llama serve` as a process of its own; `trust` is in its certificate, if it has one."""

    def __init__(
        self, process: subprocess.Popen[bytes], log: Path, trust: ssl.SSLContext | None
    ) -> None:
        self.process = process
        self.log = log
        self.url = ""
        self._verify = trust or True

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    @property
    def family(self) -> list[psutil.Process]:
        """The HTTP process, its engine's, and the chat template's if there is one."""
        process = psutil.Process(self.process.pid)
        return [process, *process.children(recursive=True)]

    @property
    def rss(self) -> int:
        """Bytes of all of them."""
        return sum(self.rss_of_each)

    @property
    def rss_of_each(self) -> list[int]:
        """Bytes of the HTTP process, and of its children."""
        return [process.memory_info().rss for process in self.family]

    @property
    def num_fds(self) -> int:
        return sum(process.num_fds() for process in self.family)

    def metric(self, name: str) -> float:
        text = httpx.get(f"{self.url}/metrics").text
        return float(re.search(rf"^lite_llama:{name} (\S+)$", text, re.MULTILINE)[1])  # type: ignore[index]

    def is_idle(self) -> bool:
        return not self.metric("num_requests_running") and not self.metric("kv_cache_usage_perc")

    def read_log(self) -> str:
        return self.log.read_text()

    def lags_s(self) -> list[list[float]]:
        """By second, how much too long the sleeps of its event loop were; see preset_server."""
        lines = [line.partition(LAGS)[2] for line in self.read_log().splitlines()]
        return [[lag / 1e3 for lag in json.loads(line)] for line in lines if line]

    def wait_ready(self) -> None:
        def has_address() -> bool:
            found = re.search(r" on (https?://\S+)", self.read_log())
            assert self.process.poll() is None, self.read_log()
            self.url = found[1] if found else ""
            return bool(found)

        wait_until(has_address, 60)
        with httpx.Client(verify=self._verify) as client:
            wait_until(lambda: client.get(f"{self.url}/ready").status_code == 200)


@contextmanager
def server_process(
    folder: Path,
    *flags: str,
    main: str = "lite_llama.cli",
    environment: dict[str, str] | None = None,
    trust: ssl.SSLContext | None = None,
) -> Iterator[ServerProcess]:
    log = folder / "server.log"
    log.unlink(missing_ok=True)
    with log.open("ab") as stream:  # as tests add lines of their own
        process = subprocess.Popen(
            [sys.executable, "-m", main, "serve", "--port", "0", "--device", "cpu", *flags],
            stdout=stream,
            stderr=stream,
            env={**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})},
        )
        server = ServerProcess(process, log, trust)
        try:
            server.wait_ready()
            yield server
        finally:
            if process.poll() is None:
                process.kill()
            process.wait(10)


def ask_long(url: str, max_tokens: int) -> list[dict[str, Any]]:
    body = {
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": max_tokens,
        "ignore_eos": True,
        "stream": True,
    }
    answer = httpx.post(f"{url}/v1/chat/completions", json=body, timeout=60)
    lines = [line[6:] for line in answer.text.split("\n\n") if line.startswith("data: {")]
    return [json.loads(line) for line in lines]


def check_death(
    server: ServerProcess,
    limit_s: float,
    *,
    fault: Callable[[], None] | None = None,
    exit_limit_s: float = 5.0,
) -> None:
    """L7: the stream ends with an error event and /ready turns, both in time; exit is not 0.

    Limits are counted from `fault`, called in mid-stream, or from the one that the log notes.
    """

    def ask_timed() -> tuple[dict[str, Any], float]:
        return ask_long(server.url, 2000)[-1], time.time()

    with (
        httpx.Client(base_url=server.url) as client,
        concurrent.futures.ThreadPoolExecutor(1) as pool,
    ):
        stream = pool.submit(ask_timed)
        if fault is not None:
            wait_until(lambda: server.metric("num_requests_running") == 1, 30)
            time.sleep(0.5)
            fault_at = time.time()
            fault()
        wait_until(lambda: client.get("/ready").status_code == 503, 5)
        not_ready_at = time.time()
        code = server.process.wait(8)
        exited_at = time.time()
        last, ended_at = stream.result()
    if fault is None:
        fault_at = float(re.search(r"fault at (\S+)", server.read_log())[1])  # type: ignore[index]
    assert last["error"]["type"] == "overloaded_error"
    assert code != 0
    assert 0 < ended_at - fault_at < limit_s + 1
    assert 0 < not_ready_at - fault_at < limit_s + 1
    assert 0 < exited_at - fault_at < limit_s + exit_limit_s
