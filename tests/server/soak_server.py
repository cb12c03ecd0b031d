"""The long forms of the matrix: `make soak`. Not collected by a plain pytest run."""

import asyncio
import random
import time
from typing import Any

import httpx
import psutil
import pytest

from lite_llama.text.grammar import MAX_CACHED
from tests.server.servers import LocalServer, wait_until
from tests.server.test_limits import mutant

SOAK_S = 30 * 60


@pytest.mark.timeout(3600)
def test_10_000_malformed_requests(server: LocalServer) -> None:
    """A2."""
    draw = random.Random(2)
    with httpx.Client(base_url=server.url, timeout=60) as client:
        for _ in range(10_000):
            answer = client.post(
                "/v1/chat/completions",
                content=mutant(draw),
                headers={"content-type": "application/json"},
            )
            assert answer.status_code in (200, 400, 404), answer.text


@pytest.mark.timeout(3600)
def test_5_000_unique_schemas(server: LocalServer) -> None:
    """S3."""
    process, flat = psutil.Process(), 0
    for number in range(5000):
        schema = {"type": "object", "properties": {f"field{number}": {"type": "integer"}}}
        form = {"type": "json_schema", "json_schema": {"name": "x", "schema": schema}}
        assert server.chat("Hi", response_format=form, max_tokens=1).status_code == 200
        if number == 500:
            flat = process.memory_info().rss
    assert len(server.service.grammars) <= MAX_CACHED
    assert process.memory_info().rss - flat < 40e6


@pytest.mark.timeout(3600)
@pytest.mark.parametrize("stream", [True, False], ids=["L1", "L2"])
def test_10_rounds_of_500_requests_with_disconnects(server: LocalServer, *, stream: bool) -> None:
    """L1 and L2."""

    async def one(client: httpx.AsyncClient, draw: random.Random) -> int:
        body: dict[str, Any] = {"messages": [{"role": "user", "content": "Hi"}], "stream": stream}
        asked = client.post("/v1/chat/completions", json=body | {"max_tokens": 8})
        limit = draw.random() * 10 if draw.random() < 0.3 else 600
        try:
            return (await asyncio.wait_for(asked, limit)).status_code
        except TimeoutError:
            return 0

    async def round_of(seed: int) -> list[int]:
        draw = random.Random(seed)
        limits = httpx.Limits(max_connections=500)
        async with httpx.AsyncClient(base_url=server.url, timeout=600, limits=limits) as client:
            return await asyncio.gather(*(one(client, draw) for _ in range(500)))

    for seed in range(10):
        assert set(asyncio.run(round_of(seed))) <= {0, 200, 503}
        wait_until(server.is_idle, 5)


@pytest.mark.timeout(3600)
def test_half_an_hour_of_mixed_load(server: LocalServer) -> None:
    """L12."""
    process = psutil.Process()
    draw = random.Random(3)
    marks: list[tuple[float, int]] = []
    begun = time.monotonic()
    num_files = 0
    while (elapsed := time.monotonic() - begun) < SOAK_S:
        fields: dict[str, Any] = draw.choice(
            [{}, {"stream": True}, {"n": 2}, {"regex": "[ab]{4}"}, {"logprobs": True}]
        )
        answer = server.chat(f"Question {draw.random()}", max_tokens=8, **fields)
        assert answer.status_code == 200
        if elapsed > SOAK_S / 6:
            num_files = num_files or process.num_fds()
            marks.append((elapsed, process.memory_info().rss))
    (start_s, start), (end_s, end) = marks[0], marks[-1]
    assert (end - start) / (end_s - start_s) * 3600 < 1e6
    assert abs(process.num_fds() - num_files) < 10
