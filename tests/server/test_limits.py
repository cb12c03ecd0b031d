"""Hostile and oversized requests: refused early, with the right status, and nothing else."""

import concurrent.futures
import json
import random
import socket
import time
from collections.abc import Callable
from typing import Any

import httpx
import psutil
import pytest

from tests.server.servers import LocalServer, wait_until

NUMBERS = {
    "n": (1, 16),
    "seed": (-(2**63), 2**63 - 1),
    "max_tokens": (1, 1000),
    "max_completion_tokens": (1, 1000),
    "min_tokens": (0, 1000),
    "temperature": (0, 2),
    "top_p": (None, 1),
    "top_k": (-1, None),
    "min_p": (0, 1),
    "presence_penalty": (-2, 2),
    "frequency_penalty": (-2, 2),
    "repetition_penalty": (None, 2),
    "top_logprobs": (0, 20),
    "prompt_logprobs": (0, 20),
    "timeout": (None, 3600),
}
INTEGERS = {"n", "seed", "max_tokens", "max_completion_tokens", "min_tokens", "top_k"} | {
    "top_logprobs",
    "prompt_logprobs",
}


def raw(server: LocalServer, body: bytes) -> httpx.Response:
    headers = {"content-type": "application/json"}
    return httpx.post(
        f"{server.url}/v1/chat/completions", content=body, headers=headers, timeout=30
    )


def with_field(name: str, literal: str) -> bytes:
    logprobs = ', "logprobs": true' if name == "top_logprobs" else ""
    return (
        '{"messages": [{"role": "user", "content": "Hi"}]' + f'{logprobs}, "{name}": {literal}}}'
    ).encode()


def bad_values(name: str) -> list[str]:
    low, high = NUMBERS[name]
    values = ["NaN", "Infinity", "-Infinity", '"1"', "true", "[]", "{}", "1e400"]
    values += [str(2**63)] if name not in ("top_k",) else [str(2**63), "-2"]
    if low is not None:
        values.append(str(low - 1))
    if high is not None:
        values.append(str(high + 1))
    if name in INTEGERS:
        values.append("1.5")
    if name in ("top_p", "repetition_penalty", "timeout"):
        values.append("0")
    return values


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_out_of_bounds_is_a_400_naming_its_field(server: LocalServer, name: str) -> None:
    """A3."""
    generated = server.llm.engine.scheduler.pool.stats.num_queried_tokens
    for literal in bad_values(name):
        answer = raw(server, with_field(name, literal))
        assert answer.status_code == 400, (name, literal, answer.text)
        error = answer.json()["error"]
        if literal not in ("NaN", "Infinity", "-Infinity", "1e400"):  # no JSON at all
            assert error["param"] == name, (literal, error)
    assert server.llm.engine.scheduler.pool.stats.num_queried_tokens == generated


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("logit_bias", {"-1": 1}),
        ("logit_bias", {"49152": 1}),
        ("logit_bias", {str(2**31): 1}),
        ("logit_bias", {str(2**63): 1}),
        ("logit_bias", {str(i): 1 for i in range(1025)}),
        ("stop_token_ids", [-1]),
        ("stop_token_ids", [49152]),
        ("stop_token_ids", [2**31]),
        ("stop_token_ids", [2**63]),
        ("stop_token_ids", [1] * 65),
        ("n", 10**9),
        ("max_tokens", 10**9),
        ("stop", ["x"] * 10**5),
        ("stop", "x" * 257),
        ("messages", [{"role": "user", "content": "x"}] * 10**4),
    ],
    ids=lambda value: str(value)[:24],
)
def test_ids_and_counts_are_checked_before_anything_is_spent(
    server: LocalServer, name: str, value: Any
) -> None:
    """A4 (without its GPU) and A5."""
    before = server.chat("Hi", max_tokens=3, temperature=0, logprobs=True).json()["choices"]
    body = {"messages": [{"role": "user", "content": "Hi"}], name: value}
    content = json.dumps(body).encode()
    answer = raw(server, content)
    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == name
    assert answer.elapsed.total_seconds() < (0.1 if len(content) < 10_000 else 0.5)
    after = server.chat("Hi", max_tokens=3, temperature=0, logprobs=True).json()["choices"]
    assert after == before


def mutant(draw: random.Random) -> bytes:
    """A request body, broken in one of many ways."""
    junk: list[Any] = [None, True, -1, 2**63, 1e308, "", "\x00", "é" * 50, [], {}, [[]], {"a": {}}]
    body: Any = {
        "messages": [{"role": "user", "content": "Hi"}],
        "max_tokens": 1,
        draw.choice([*NUMBERS, "stop", "tools", "messages", "model", "logit_bias"]): draw.choice(
            junk
        ),
        draw.choice(["response_format", "tool_choice", "user", "stream_options"]): draw.choice(
            junk
        ),
    }
    first = body["messages"][0] if isinstance(body["messages"], list) and body["messages"] else []
    if isinstance(first, dict) and draw.random() < 0.2:
        first[draw.choice(["role", "content", "name", "tool_calls"])] = draw.choice(junk)
    text = json.dumps(body).encode()
    kind = draw.randrange(6)
    if kind == 0:
        cut = draw.randrange(len(text))
        return text[:cut]
    if kind == 1:
        place = draw.randrange(len(text))
        return text[:place] + draw.randbytes(3) + text[place:]
    if kind == 2:
        return text.replace(b'"Hi"', draw.choice([b'"\\ud800"', b"NaN", b"1e999", b'"\xff"']))
    if kind == 3:
        return text[:-1] + b',"messages":[]}'
    if kind == 4:
        return b'{"messages":' + b"[" * draw.choice([10, 10**5])
    return text


def check_malformed(url: str, rss: Callable[[], int], num_cases: int) -> float:
    """Send mutants; the 99th percentile of the seconds that a refusal took."""
    draw = random.Random(1)
    times = []
    with httpx.Client(base_url=url, timeout=30) as client:
        start_rss = 0
        for case in range(num_cases):
            begun = time.perf_counter()
            answer = client.post(
                "/v1/chat/completions",
                content=mutant(draw),
                headers={"content-type": "application/json"},
            )
            if answer.status_code != 200:
                times.append(time.perf_counter() - begun)
            assert answer.status_code in (200, 400, 404), answer.text
            assert answer.status_code == 200 or answer.json()["error"]["message"]
            if case == 100:
                start_rss = rss()
    assert rss() - start_rss < 20e6
    return sorted(times)[int(len(times) * 0.99)]


def test_malformed_requests_are_never_a_server_error(server: LocalServer) -> None:
    """A2, 600 of its 10 000 cases (the rest: `make soak`)."""
    assert check_malformed(server.url, lambda: psutil.Process().memory_info().rss, 600) < 0.1


def test_bodies_and_heads_are_bounded(server: LocalServer) -> None:
    """A6."""
    assert raw(server, b" " * ((10 << 20) + 1)).status_code == 413
    url = f"{server.url}/health"
    assert httpx.get(url, headers={"x": "y" * 60_000}).status_code == 200
    assert httpx.get(url, headers={"x": "y" * 1_000_000}).status_code == 431
    assert httpx.get(url, headers={f"x{i}": "y" for i in range(90)}).status_code == 200
    assert httpx.get(url, headers={f"x{i}": "y" for i in range(10_000)}).status_code == 431
    assert httpx.get(f"{url}?{'x' * 65_000}", headers={"x": "y" * 1000}).status_code == 431


def test_a_body_of_unknown_length_is_bounded_too(server: LocalServer) -> None:
    def endless() -> Any:
        while True:
            yield b" " * 65536

    try:
        answer = httpx.post(
            f"{server.url}/v1/chat/completions",
            content=endless(),
            headers={"content-type": "application/json"},
            timeout=30,
        )
        assert answer.status_code == 413
    except httpx.WriteError:
        pass  # the server closed the connection before the client looked at the answer
    assert httpx.get(f"{server.url}/health").status_code == 200


def check_slow_clients(port: int, num_clients: int, limit_s: float) -> list[float]:
    """Connections that send a byte now and then are closed in time; seconds of each /health."""
    head = b"POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n"
    full = head + b"content-type: application/json\r\ncontent-length: 1000\r\n\r\n{"
    connections = []
    for number in range(num_clients):
        connection = socket.create_connection(("127.0.0.1", port))
        connection.sendall(full if number % 2 else head)
        connection.settimeout(0)
        connections.append(connection)
    begun = time.monotonic()
    times = []
    open_ones = set(connections)
    with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
        while open_ones and time.monotonic() - begun < limit_s:
            for _ in range(5):
                asked = time.perf_counter()
                client.get("/health")
                times.append(time.perf_counter() - asked)
                time.sleep(0.1)
            open_ones -= {connection for connection in open_ones if _is_closed(connection)}
    for connection in connections:
        connection.close()
    assert not open_ones
    return times


def _is_closed(connection: socket.socket) -> bool:
    """Whether the server has ended it; if not, another byte is sent."""
    try:
        while received := connection.recv(65536):
            assert received.startswith(b"HTTP/1.1 408 ")
        return True
    except BlockingIOError:
        connection.send(b"x")
        return False
    except OSError:
        return True


def test_slow_heads_and_bodies_are_closed_and_hurt_nobody(server: LocalServer) -> None:
    """A6, with 40 of its 200 connections. One /health may meet another program on its core."""
    assert sorted(check_slow_clients(server.port, 40, 12))[-2] < 0.5


def test_prompts_at_the_edge_of_the_context(server: LocalServer) -> None:
    """A7."""
    tokens = server.llm.tokenizer.encode(" word")
    limit = server.llm.plan.max_model_len

    def status(prompt: Any, max_tokens: int = 1) -> int:
        return server.post(
            "/v1/completions", {"prompt": prompt, "max_tokens": max_tokens}
        ).status_code

    assert status(tokens * (limit - 1)) == 200
    assert status(tokens * limit) == 400
    assert status(tokens * (limit - 1), 2) == 400


def test_what_only_the_template_makes_too_long_is_refused_by_the_messages_name(
    server: LocalServer,
) -> None:
    answer = server.chat("a" * (8 * server.llm.plan.max_model_len - 20))
    assert answer.status_code == 400
    error = answer.json()["error"]
    assert error["param"] == "messages"
    assert "bytes, limit 8192" in error["message"]


@pytest.mark.parametrize(
    "text", ["a" * 9_000_000, "👩‍👩‍👧‍👦" * 10_000, " " * 1_000_000], ids=["letter", "zwj", "spaces"]
)
def test_huge_texts_are_refused_without_blocking_the_loop(server: LocalServer, text: str) -> None:
    """A7."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        pending = pool.submit(server.chat, text)
        times = []
        while not pending.done():
            begun = time.perf_counter()
            httpx.get(f"{server.url}/health")
            times.append(time.perf_counter() - begun)
    assert pending.result().status_code == 400
    assert pending.result().json()["error"]["code"] == "context_length_exceeded"
    assert sorted(times)[int(len(times) * 0.99)] < 0.5


def test_worst_case_texts_below_the_limit_are_tokenized_quickly(server: LocalServer) -> None:
    for text in ("a" * 8000, " " * 8000, "👩‍👩‍👧‍👦" * 300, "1" * 8000, "<|im_end|>" * 700):
        begun = time.perf_counter()
        assert server.post("/tokenize", {"prompt": text}).status_code == 200
        assert time.perf_counter() - begun < 0.5


def test_a_body_that_is_not_announced_as_json_is_a_415(server: LocalServer) -> None:
    answer = httpx.post(f"{server.url}/v1/chat/completions", content=b"{}")
    assert answer.status_code == 415


def test_garbage_instead_of_http_is_a_400(server: LocalServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(b"\x16\x03\x01 this is no HTTP\r\n\r\n")
        assert connection.recv(4096).startswith(b"HTTP/1.1 400 ")


def test_the_worst_bodies_are_answered_in_bounded_time(server: LocalServer) -> None:
    for body in (b"[" * (10 << 20), b'"\\"' * (3 << 20), b"{}," * (3 << 20), b"0," * (5 << 20)):
        begun = time.perf_counter()
        assert raw(server, body[: 10 << 20]).status_code == 400
        assert time.perf_counter() - begun < 2
    wait_until(server.is_idle)
