"""The long forms of rows A and S of the matrix: `make soak`. Not part of a plain pytest run.

The servers are processes of their own, so that what a client takes is not counted as theirs.
"""

import concurrent.futures
import contextlib
import itertools
import json
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import openai
import pytest

from lite_llama.text.grammar import MAX_CACHED, GrammarCompiler
from tests.server.servers import LocalServer, ServerProcess, server_process, wait_until
from tests.server.test_chat import ADD, WEATHER, check_call, check_streams, create, rebuilt_calls
from tests.server.test_limits import check_malformed, check_slow_clients
from tests.server.test_openapi import check_generated_requests
from tests.text.test_grammar import HOSTILE, MANY_SCHEMAS

pytestmark = pytest.mark.timeout(3600)
JSON = {"content-type": "application/json"}
HI = {"messages": [{"role": "user", "content": "Hi"}]}


@pytest.fixture
def served(tmp_path: Path) -> Iterator[ServerProcess]:
    """A server with the default settings."""
    with server_process(tmp_path) as server:
        httpx.post(f"{server.url}/v1/chat/completions", json=HI | {"max_tokens": 2}, timeout=60)
        yield server
        wait_until(server.is_idle)


def test_5_000_generated_requests_are_answered_as_the_document_says(tmp_path: Path) -> None:
    """A1. A short context, as in the short form."""
    with server_process(tmp_path, "--max-model-len", "64") as served:
        check_generated_requests(served.url, 5000)


def test_10_000_malformed_requests(tmp_path: Path) -> None:
    """A2. A short context, as a mutant that is sound by chance may ask for all of it."""
    with server_process(tmp_path, "--max-model-len", "128") as served:
        p99_s = check_malformed(served.url, lambda: served.rss, 10_000)
        print(f"p99 of a refusal {p99_s * 1e3:.1f} ms")
        assert p99_s < 0.05


def array_body(name: str, value: str, count: int) -> bytes:
    fields = json.dumps({key: item for key, item in HI.items() if key != name})[1:-1]
    listed = ",".join([value] * count)
    return f'{{{fields}{"," * bool(fields)}"{name}":[{listed}]}}'.encode()


def test_enormous_counts_are_refused_in_20_ms(served: ServerProcess) -> None:
    """A5. Medians of 9, as a shared machine interrupts."""
    bodies = {
        "n": (json.dumps(HI | {"n": 10**9}).encode(), 400, 0.02),
        "max_tokens": (json.dumps(HI | {"max_tokens": 10**9}).encode(), 400, 0.02),
        "stops": (array_body("stop", '"x"', 10**6), 400, 0.02),
        "messages": (array_body("messages", "{}", 10**6), 400, 0.02),
        "whole messages": (
            array_body("messages", '{"role":"user","content":"x"}', 10**6),
            413,
            0.02,
        ),
    }
    before = served.rss
    for name, (body, status, limit_s) in bodies.items():
        median = statistics.median(answer_s(served, body, status) for _ in range(9))
        print(f"{name}: {len(body)} bytes, {status} after {median * 1e3:.1f} ms")
        assert median < limit_s, name
    assert served.rss - before < 10e6


def answer_s(server: ServerProcess, body: bytes, status: int) -> float:
    """Seconds from the first byte sent to the answer, which may come before the last."""
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.settimeout(10)
        begun = time.perf_counter()
        sending = threading.Thread(target=send_all, args=(connection, head.encode() + body))
        sending.start()
        answer = connection.recv(4096)
        took_s = time.perf_counter() - begun
        with contextlib.suppress(OSError):  # closed by the server, which had read enough
            connection.shutdown(socket.SHUT_RDWR)
        sending.join()
    assert answer.startswith(b"HTTP/1.1 %d " % status), answer
    return took_s


def send_all(connection: socket.socket, content: bytes) -> None:
    with contextlib.suppress(OSError):  # refused before it was read
        connection.sendall(content)


def test_200_slow_clients_hurt_nobody(served: ServerProcess) -> None:
    """A6. The body's timer is 10 s and begins with its head, so 10.5 s is the bound here."""
    assert max(check_slow_clients(served.port, 200, 11)) < 0.1


def beside_health(url: str, work: Callable[[], httpx.Response]) -> tuple[httpx.Response, float]:
    """An answer, and the 99th percentile of the seconds that /health took beside."""
    times = []
    with concurrent.futures.ThreadPoolExecutor(1) as pool, httpx.Client(base_url=url) as client:
        pending = pool.submit(work)
        while not pending.done() or len(times) < 100:
            begun = time.perf_counter()
            client.get("/health")
            times.append(time.perf_counter() - begun)
            time.sleep(0.002)
    return pending.result(), sorted(times)[int(len(times) * 0.99)]


def test_enormous_texts_leave_health_quick(served: ServerProcess) -> None:
    """A7."""
    assert answer_s(served, b'{"prompt": "' + b"a" * 100_000_000 + b'"}', 413) < 1
    family = "\U0001f469\u200d\U0001f469\u200d\U0001f467\u200d\U0001f466"
    limit = 8 * httpx.get(f"{served.url}/v1/models").json()["data"][0]["max_model_len"]
    cases = {
        "10^5 families": (family * 10**5, 400),
        "1 MB of spaces": (" " * 10**6, 400),
        "letters that fit": ("a" * limit, 200),
        "spaces that fit": (" " * limit, 200),
        "families that fit": (family * (limit // len(family.encode())), 200),
    }
    for name, (text, status) in cases.items():
        ask = partial(httpx.post, f"{served.url}/tokenize", json={"prompt": text}, timeout=60)
        answer, p99_s = beside_health(served.url, ask)
        print(f"{name}: {answer.status_code} after {answer.elapsed.total_seconds() * 1e3:.0f} ms")
        assert answer.status_code == status, name
        assert p99_s < 0.1, name


def test_1_000_streams_equal_their_whole_texts(served: ServerProcess) -> None:
    """A9. One after the other: beside another request sums are rounded differently."""
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        check_streams(client, 1000)


def test_200_tool_calls_are_valid(served: ServerProcess) -> None:
    """A10: tool_choice required, named, auto and none; parallel or not; whole and streamed."""
    named: Any = {"type": "function", "function": {"name": "add"}}
    with openai.OpenAI(base_url=f"{served.url}/v1", api_key="none", max_retries=0) as client:
        for case in range(200):
            choice = ("required", named, "auto", "none")[case % 8 // 2]
            options: dict[str, Any] = {
                "tools": [WEATHER, ADD],
                "tool_choice": choice,
                "parallel_tool_calls": case % 16 >= 8,
                "temperature": 1.5,
                "seed": case,
                "max_tokens": 700 if choice in ("required", named) else 30,
            }
            if choice in ("auto", "none"):
                message = create(client, **options).choices[0].message
                assert message.content or message.tool_calls
                assert choice == "auto" or message.tool_calls is None
                continue
            if case % 2:
                calls = rebuilt_calls(create(client, stream=True, **options))
            else:
                listed = create(client, **options).choices[0].message.tool_calls
                calls = [
                    {"name": call.function.name, "arguments": call.function.arguments}
                    for call in listed
                ]
            assert len(calls) >= 1
            assert len(calls) == 1 or (choice == "required" and case % 16 >= 8)
            for call in calls:
                check_call(**call)


def test_over_200_schemas_are_satisfied_by_the_model(served: ServerProcess) -> None:
    """S1."""

    def finished(number: int) -> bool:
        form = {
            "type": "json_schema",
            "json_schema": {"name": "x", "schema": MANY_SCHEMAS[number]},
        }
        body = {**HI, "response_format": form, "temperature": 1.5, "seed": number}
        url = f"{served.url}/v1/chat/completions"
        answer = httpx.post(url, json={**body, "max_tokens": 150}, timeout=120)
        assert answer.status_code == 200, answer.text
        [choice] = answer.json()["choices"]
        if choice["finish_reason"] != "stop":
            return False
        jsonschema.validate(json.loads(choice["message"]["content"]), MANY_SCHEMAS[number])
        return True

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        done = list(pool.map(finished, range(len(MANY_SCHEMAS))))
    print(f"{sum(done)} of {len(done)} answers were finished")
    assert sum(done) > 0.9 * len(done)


def test_hostile_grammars_do_not_slow_another_stream(served: ServerProcess) -> None:
    """S2. The baseline is the same stream beside the same requests with a harmless grammar."""
    url = f"{served.url}/v1/chat/completions"

    def ask(kind: str, source: Any) -> None:
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": source}}
        fields = {"regex": source} if kind == "regex" else {"response_format": form}
        begun = time.perf_counter()
        answer = httpx.post(url, json={**HI, "max_tokens": 3, **fields}, timeout=60)
        assert answer.status_code in (200, 400, 500), answer.text
        assert answer.status_code != 500 or "grammar" in answer.text
        assert time.perf_counter() - begun < 1, str(source)[:40]

    def itl_p99(grammars: list[tuple[str, Any]]) -> float:
        times: list[float] = []
        is_read = threading.Event()

        def read() -> None:
            body = HI | {"max_tokens": 2000, "ignore_eos": True, "stream": True}
            with httpx.stream("POST", url, json=body, timeout=60) as answer:
                for line in answer.iter_lines():
                    if line.startswith("data: "):
                        times.append(time.perf_counter())
                    if is_read.is_set():
                        return

        with concurrent.futures.ThreadPoolExecutor(1) as pool:
            reading = pool.submit(read)
            wait_until(lambda: len(times) > 20)
            del times[:]
            for kind, source in grammars:
                ask(kind, source)
                time.sleep(0.05)
            wait_until(lambda: len(times) > 300, 30)
            is_read.set()
            reading.result()
        gaps = sorted(later - earlier for earlier, later in itertools.pairwise(times))
        return gaps[int(len(gaps) * 0.99)]

    harmless = itl_p99([("regex", f"[ab]{{{number}}}") for number in range(2, 27)])
    hostile = itl_p99(HOSTILE)
    print(f"ITL p99 {harmless * 1e3:.1f} ms, beside hostile grammars {hostile * 1e3:.1f} ms")
    assert hostile < 2 * harmless


def test_5_000_unique_schemas(
    server: LocalServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """S3: what is kept is bounded (seen from inside), and in a process of its own memory is flat
    and no file is written."""
    spec = {"type": "json_schema", "json_schema": {"name": "x"}}

    def ask(url: str, client: httpx.Client, number: int) -> None:
        schema = {"type": "object", "properties": {f"field{number}": {"type": "integer"}}}
        form = spec | {"json_schema": {"name": "x", "schema": schema}}
        body = {**HI, "response_format": form, "max_tokens": 1}
        assert client.post(f"{url}/v1/chat/completions", json=body).status_code == 200

    keep, compilers = GrammarCompiler._keep, set()

    def noting(compiler: GrammarCompiler, *arguments: Any) -> None:
        compilers.add(compiler)
        keep(compiler, *arguments)

    monkeypatch.setattr(GrammarCompiler, "_keep", noting)
    home = tmp_path / "home"
    home.mkdir()
    environment = {"HOME": str(home), "TMPDIR": str(home), "XDG_CACHE_HOME": str(home)}
    with httpx.Client(timeout=60) as client:
        for number in range(MAX_CACHED + 100):
            ask(server.url, client, number)
        assert [len(compiler) for compiler in compilers] == [MAX_CACHED]
        with server_process(tmp_path, environment=environment) as alone:
            flat = 0
            before = set(home.rglob("*"))
            for number in range(5000):
                ask(alone.url, client, number)
                if number == 500:
                    flat = alone.rss
            print(f"RSS after 500 schemas {flat / 1e6:.0f} MB, 5 000 {alone.rss / 1e6:.0f} MB")
            assert alone.rss - flat < 40e6
            assert set(home.rglob("*")) == before
