"""What happens under load, when clients leave, and when something inside breaks."""

import asyncio
import concurrent.futures
import contextlib
import gc
import json
import random
import socket
import threading
import time
from dataclasses import replace
from typing import Any

import httpx
import pytest
import torch
from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

from lite_llama.engine import sampler
from lite_llama.engine.engine import Engine
from lite_llama.llm import LLM
from lite_llama.server import http as server_http
from lite_llama.server.async_engine import AsyncEngine, Generation
from lite_llama.server.config import ServeConfig
from lite_llama.server.connection import Exchange
from lite_llama.text.grammar import Matcher
from tests.server.servers import LocalServer, wait_until


def ask(text: str, **fields: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": text}], **fields}


LONG = {"max_tokens": 800, "ignore_eos": True}


async def hold_a_round(
    url: str, seed: int, *, num: int, within_s: float, stream: bool, num_tokens: int = 12
) -> list[int]:
    """Requests at once, a third of them dropped at a random moment; statuses, 0 if dropped."""
    draw = random.Random(seed)
    limits = httpx.Limits(max_connections=num)

    async def one(client: httpx.AsyncClient, number: int) -> int:
        body = ask(f"Question {number}?", max_tokens=num_tokens, ignore_eos=True, stream=stream)
        request = client.post("/v1/chat/completions", json=body)
        if draw.random() > 0.3:
            return (await request).status_code
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(request, draw.random() * within_s)
        return 0

    async with httpx.AsyncClient(base_url=url, timeout=120, limits=limits) as client:
        return await asyncio.gather(*(one(client, i) for i in range(num)))


@pytest.mark.parametrize("stream", [True, False])
def test_random_disconnects_leak_no_blocks(server: LocalServer, *, stream: bool) -> None:
    """L1 and L2, with 2 of their 10 rounds of 500."""
    for number in range(2):
        codes = asyncio.run(hold_a_round(server.url, number, num=40, within_s=1.5, stream=stream))
        assert set(codes) <= {0, 200}
        assert codes.count(200) > 20
        wait_until(server.is_idle, 3)


def num_left() -> int:
    """Requests of which something is still in memory."""
    kinds = (Generation, Exchange, RequestResponseCycle)
    return sum(type(each) in kinds for each in gc.get_objects())


def test_nothing_of_a_request_is_left_to_the_collector(server: LocalServer) -> None:
    """What it leaves would make memory grow for thousands of requests, and then a turn slow."""
    gc.collect()
    gc.disable()
    try:
        before = num_left()
        with httpx.Client(base_url=server.url, timeout=60) as client:
            for fields in ({}, {"stream": True}, {"n": 2}, {"stop": ["e"]}):
                body = {**ask("Hi", max_tokens=6), **fields}
                client.post("/v1/chat/completions", json=body)
        wait_until(lambda: num_left() <= before)
    finally:
        gc.enable()


@pytest.mark.parametrize("stream", [True, False])
def test_a_disconnect_ends_the_request_within_a_few_steps(
    server: LocalServer, monkeypatch: pytest.MonkeyPatch, *, stream: bool
) -> None:
    """L2: at most the step under way is finished once the loop has heard of it."""
    has_left, is_noticed = threading.Event(), threading.Event()
    steps_after_leaving = steps_after_notice = 0
    step, release = Engine.step, AsyncEngine.release

    def counting(engine: Engine) -> Any:
        nonlocal steps_after_leaving, steps_after_notice
        steps_after_leaving += has_left.is_set()
        steps_after_notice += is_noticed.is_set()
        return step(engine)

    def noticing(engine: AsyncEngine, generation: Any) -> None:
        release(engine, generation)
        is_noticed.set()

    monkeypatch.setattr(Engine, "step", counting)
    monkeypatch.setattr(AsyncEngine, "release", noticing)
    body = json.dumps(ask("Hi", stream=stream, **LONG)).encode()
    head = (
        "POST /v1/chat/completions HTTP/1.1\r\nhost: 127.0.0.1\r\n"
        f"content-type: application/json\r\ncontent-length: {len(body)}\r\n\r\n"
    )
    with socket.create_connection(("127.0.0.1", server.port)) as connection:
        connection.sendall(head.encode() + body)
        wait_until(lambda: len(server.llm.engine.scheduler.running) == 1)
        time.sleep(0.2)
        has_left.set()
    wait_until(server.is_idle, 2)
    assert is_noticed.is_set()
    assert steps_after_notice <= 1
    assert steps_after_leaving <= 6  # the loop hears of it within a few steps of 10 ms


def limit(server: LocalServer, monkeypatch: pytest.MonkeyPatch, **limits: int) -> None:
    engine = server.service.engine
    monkeypatch.setattr(engine, "limits", replace(engine.limits, **limits))


def test_a_full_queue_is_a_503_with_retry_after(
    server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    limit(server, monkeypatch, max_sequences=3)
    shed = server.service.metrics.shed._value.get()
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        body = ask("Hi", max_tokens=60, ignore_eos=True)
        answers = list(pool.map(lambda _: server.post("/v1/chat/completions", body), range(8)))
    codes = [answer.status_code for answer in answers]
    assert set(codes) == {200, 503}
    assert codes.count(200) >= 3
    for answer in answers:
        if answer.status_code == 503:
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["error"]["type"] == "overloaded_error"
            assert answer.elapsed.total_seconds() < 0.5
    assert server.service.metrics.shed._value.get() - shed == codes.count(503)
    assert server.chat("Hi", n=4, temperature=1).status_code == 503


def test_a_full_token_queue_is_a_503(server: LocalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    limit(server, monkeypatch, max_queued_tokens=100)
    with concurrent.futures.ThreadPoolExecutor(6) as pool:
        body = {"prompt": "word " * 400, "max_tokens": 2}
        answers = list(pool.map(lambda _: server.post("/v1/completions", body), range(6)))
    assert {answer.status_code for answer in answers} == {200, 503}


def test_more_requests_than_the_batch_holds_all_finish(server: LocalServer) -> None:
    with concurrent.futures.ThreadPoolExecutor(40) as pool:
        bodies = [ask(f"Number {i}", max_tokens=5, temperature=0) for i in range(40)]
        answers = list(pool.map(lambda body: server.post("/v1/chat/completions", body), bodies))
    assert {answer.status_code for answer in answers} == {200}
    assert all(answer.json()["usage"]["completion_tokens"] >= 1 for answer in answers)


def test_a_broken_grammar_fails_its_own_request_only(
    server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L10: the mask of one request raises in mid-answer."""
    # An answer without close calls: beside another request sums are rounded differently.
    plain = ask("What is the capital of France?", max_tokens=20, temperature=0)
    expected = server.post("/v1/chat/completions", plain).json()["choices"]
    accept = Matcher.accept
    calls = 0

    def failing(matcher: Matcher, token_id: int) -> None:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise RuntimeError("secret detail")
        accept(matcher, token_id)

    monkeypatch.setattr(Matcher, "accept", failing)
    constrained = ask("Digits", max_tokens=20, regex="[0-9]{30}")
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        other = pool.submit(server.post, "/v1/chat/completions", plain)
        broken = server.post("/v1/chat/completions", constrained)
        beside = other.result().json()["choices"]
    assert broken.status_code == 500
    assert "secret" not in broken.text
    assert beside == expected


def test_a_failed_step_fails_its_batch_and_the_next_request_works(
    server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample = sampler.Sampler.sample
    failures = iter([True])

    def failing(*arguments: Any, **options: Any) -> Any:
        if next(failures, False):
            raise RuntimeError("secret detail")
        return sample(*arguments, **options)

    monkeypatch.setattr(sampler.Sampler, "sample", failing)
    failed = server.chat("Hi", max_tokens=4)
    assert failed.status_code == 500
    assert failed.json()["error"]["type"] == "server_error"
    assert "secret" not in failed.text
    assert server.chat("Hi", max_tokens=4).status_code == 200
    assert httpx.get(f"{server.url}/ready").status_code == 200


def test_a_step_without_memory_fails_its_batch_and_the_next_ones_are_half_as_large(
    server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    sample, scheduler = sampler.Sampler.sample, server.llm.engine.scheduler
    failures = iter([True])

    def failing(*arguments: Any, **options: Any) -> Any:
        if next(failures, False):
            raise torch.OutOfMemoryError("CUDA out of memory")
        return sample(*arguments, **options)

    monkeypatch.setattr(sampler.Sampler, "sample", failing)
    monkeypatch.setattr(scheduler, "max_num_batched_tokens", 100)
    assert server.chat("Hi", max_tokens=4).status_code == 500
    assert scheduler.max_num_batched_tokens == 50
    answer = server.chat("word " * 120, max_tokens=4)
    assert answer.status_code == 200
    assert scheduler.max_num_batched_tokens == 50


def test_a_lost_device_ends_the_engine_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any, **__: Any) -> Any:
        raise torch.AcceleratorError("CUDA error: device-side assert triggered")

    with LLM(device="cpu", max_model_len=256, num_blocks=32) as llm:
        server = LocalServer(llm, ServeConfig())
        monkeypatch.setattr(sampler.Sampler, "sample", failing)
        lost = server.chat("Hi", max_tokens=4)
        assert lost.status_code == 503
        assert lost.json()["error"]["type"] == "overloaded_error"
        assert httpx.get(f"{server.url}/ready").status_code == 503
        server.stop()


def test_steps_that_keep_failing_end_the_engine(monkeypatch: pytest.MonkeyPatch) -> None:
    def failing(*_: Any, **__: Any) -> Any:
        raise RuntimeError("secret detail")

    with LLM(device="cpu", max_model_len=256, num_blocks=32) as llm:
        server = LocalServer(llm, ServeConfig())
        monkeypatch.setattr(sampler.Sampler, "sample", failing)
        codes = [server.chat("Hi", max_tokens=4).status_code for _ in range(4)]
        assert codes[:2] == [500, 500]
        assert codes[3] == 503
        assert httpx.get(f"{server.url}/ready").status_code == 503
        assert httpx.get(f"{server.url}/health").status_code == 200
        assert server.service.engine.death is not None
        server.stop()


def test_an_exception_before_the_engine_is_a_plain_500(
    server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any, **__: Any) -> Any:
        raise KeyError("secret /path")

    monkeypatch.setattr(type(server.service), "render", failing)
    answer = server.chat("Hi")
    assert answer.status_code == 500
    assert answer.json()["error"]["message"] == "the server failed on this request"


def test_a_deadline_also_holds_while_waiting(
    server: LocalServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """L14: a request that never gets a place in the batch, which is small so that steps are."""
    monkeypatch.setattr(server.llm.engine.scheduler, "max_num_seqs", 2)
    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        running = [
            pool.submit(server.chat, "Hi", max_tokens=900, ignore_eos=True, timeout=1.5)
            for _ in range(2)
        ]
        wait_until(lambda: len(server.llm.engine.scheduler.running) == 2)
        late = server.chat("Hi", max_tokens=5, timeout=0.5)
        assert late.status_code == 504
        assert 0.5 <= late.elapsed.total_seconds() < 0.6
        assert {each.result().status_code for each in running} == {504}


def test_a_silent_stream_is_pinged(server: LocalServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_http, "PING_INTERVAL_S", 0.1)
    step = Engine.step

    def slow(engine: Engine) -> Any:
        time.sleep(0.35)
        return step(engine)

    monkeypatch.setattr(Engine, "step", slow)
    answer = server.chat("Hi", max_tokens=2, stream=True)
    assert ": ping\n\n" in answer.text
    events = [part for part in answer.text.split("\n\n") if part.startswith("data: {")]
    assert all(json.loads(event.removeprefix("data: ")) for event in events)


def test_health_stays_quick_while_the_engine_works(server: LocalServer) -> None:
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        running = [
            pool.submit(server.chat, "Hi", max_tokens=40, ignore_eos=True) for _ in range(12)
        ]
        times = []
        while not all(each.done() for each in running):
            begun = time.perf_counter()
            httpx.get(f"{server.url}/health")
            times.append(time.perf_counter() - begun)
    assert sorted(times)[int(len(times) * 0.9)] < 0.3
