"""What the HTTP side costs beside a GPU, without one.

`python -m tests.server.front_load [NUM_CLIENTS ...]`
Closed-loop streams against a server with the engine of paced_engine.py. The clients are one thread
that looks at bytes only, so that they take little of a small machine.
"""

import argparse
import itertools
import json
import os
import re
import selectors
import socket
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.server.preset import MODEL
from tests.server.servers import ServerProcess, server_process

ROOT = Path(__file__).parents[2]
NUM_TOKENS = 64
_TEXT = re.compile(rb'"content":"[^"]')
_NUM_TOKENS = re.compile(rb'"completion_tokens":(\d+)')
_END, _TAIL_BYTES = b"0\r\n\r\n", 600


@dataclass
class _Client:
    """One connection; times of its present request in seconds of perf_counter."""

    connection: socket.socket
    asked: float = 0.0
    last: float = 0.0  # of the last piece of text; 0 before the first
    tail: bytes = b""  # of what has come


@dataclass
class Load:
    """What the clients saw, in seconds, and what the server's HTTP process took."""

    asked: list[tuple[float, int]]  # when, in seconds of perf_counter, and the question's number
    ttft_s: list[float]
    itl_s: list[float]  # between two pieces of text; a piece may have several tokens
    num_tokens: int
    tokens_per_s: float  # in the middle half
    front_s: float  # of a core, for each request
    lags_s: list[float]

    def __str__(self) -> str:
        def share(times: Sequence[float], part: float) -> str:
            return f"{sorted(times)[int(len(times) * part)] * 1e3:.1f}"

        return (
            f"{self.tokens_per_s:.0f} tokens/s; HTTP process {self.front_s * 1e6:.0f} us a request;"
            f" TTFT p50 {share(self.ttft_s, 0.5)}, p90 {share(self.ttft_s, 0.9)} ms;"
            f" ITL p50 {share(self.itl_s, 0.5)}, p99 {share(self.itl_s, 0.99)} ms;"
            f" loop lag p99 {share(self.lags_s, 0.99)} ms"
        )


def question(number: int) -> str:
    """About 110 tokens, and no others' first ones."""
    return f"Question {number}: " + "word " * 100


def request(port: int, number: int) -> bytes:
    body = {
        "model": MODEL,
        "messages": [{"role": "user", "content": question(number)}],
        "max_tokens": NUM_TOKENS,
        "temperature": 0,
        "stream": True,
        "ignore_eos": True,
        "stream_options": {"include_usage": True},
    }
    content = json.dumps(body).encode()
    head = (
        f"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1:{port}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(content)}\r\n\r\n"
    )
    return head.encode() + content


def load(server: ServerProcess, num_clients: int, num_requests: int, first: int = 0) -> Load:
    """Keep so many streams open until so many requests are answered."""
    front = psutil.Process(server.process.pid)
    seen = Load([], [], [], 0, 0.0, 0.0, [])
    ends: list[float] = []
    numbers = itertools.count(first)
    num_seconds, cpu_s = len(server.lags_s()), sum(front.cpu_times()[:2])
    with selectors.DefaultSelector() as selector:

        def ask(client: _Client) -> None:
            number = next(numbers)
            client.connection.sendall(request(server.port, number))
            client.asked, client.last, client.tail = time.perf_counter(), 0.0, b""
            seen.asked.append((client.asked, number))

        for _ in range(num_clients):
            client = _Client(socket.create_connection(("127.0.0.1", server.port)))
            selector.register(client.connection, selectors.EVENT_READ, client)
            ask(client)
        while len(ends) < num_requests:
            for key, _ in selector.select():
                client = key.data
                data = client.connection.recv(1 << 18)
                now = time.perf_counter()
                assert client.tail or data.startswith(b"HTTP/1.1 200 "), data
                client.tail = (client.tail + data)[-_TAIL_BYTES:]
                if _TEXT.search(data):
                    since = client.last or client.asked
                    (seen.itl_s if client.last else seen.ttft_s).append(now - since)
                    client.last = now
                if data.endswith(_END):
                    ends.append(now)
                    [num_tokens] = _NUM_TOKENS.findall(client.tail)
                    seen.num_tokens += int(num_tokens)
                    if len(ends) + num_clients <= num_requests:
                        ask(client)
                    else:
                        selector.unregister(client.connection)
                        client.connection.close()
    quarter = len(ends) // 4
    seen.tokens_per_s = 2 * quarter * NUM_TOKENS / (ends[3 * quarter] - ends[quarter])
    seen.front_s = (sum(front.cpu_times()[:2]) - cpu_s) / num_requests
    seen.lags_s = [lag for second in server.lags_s()[num_seconds:] for lag in second]
    return seen


@contextmanager
def paced_server(folder: Path) -> Iterator[ServerProcess]:
    """`lite-llama serve` for the engine of paced_engine.py."""
    flags = ("--tell-lags", "--engine-main", "tests.server.paced_engine")
    environment = {"PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    main = "tests.server.preset_server"
    with server_process(folder, *flags, main=main, environment=environment) as server:
        yield server


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("clients", nargs="*", type=int, default=[64, 256])
    parser.add_argument("--requests", type=int, default=4000)
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, paced_server(Path(folder)) as server:
        for num_clients in given.clients:
            load(server, num_clients, 3 * num_clients)
            print(f"{num_clients} clients: {load(server, num_clients, given.requests, 10_000)}")


if __name__ == "__main__":
    main()
