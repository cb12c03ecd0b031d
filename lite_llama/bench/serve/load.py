"""Drives any OpenAI-compatible server and times each token.

Open loop: requests start at random moments of a given rate (Poisson), whether or not earlier ones
have ended, as the world does it. Closed loop: a number of clients, each of which asks again as
soon as it has its answer.
"""

import asyncio
import json
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from itertools import pairwise

import httpx

from lite_llama.bench.serve.workloads import Ask

_TIMEOUT_S = 600.0


@dataclass(frozen=True)
class Target:
    """The server, and how to ask it. One of request_rate (a second) and concurrency is set."""

    url: str
    model: str
    api_key: str | None = None
    request_rate: float | None = None
    concurrency: int | None = None
    seed: int = 0


@dataclass
class Sample:
    """One request as the client saw it; times in seconds of one clock."""

    started: float
    token_times: list[float] = field(default_factory=list)
    num_tokens: int = 0
    num_prompt_tokens: int = 0
    error: str | None = None

    @property
    def ttft_s(self) -> float:
        """Time to first token."""
        return self.token_times[0] - self.started

    @property
    def e2e_s(self) -> float:
        """Time to last token."""
        return self.token_times[-1] - self.started

    @property
    def tpot_s(self) -> float:
        """Mean time of a token after the first."""
        return (self.token_times[-1] - self.token_times[0]) / max(self.num_tokens - 1, 1)

    @property
    def itl_s(self) -> list[float]:
        """Times between two pieces of the stream."""
        times = self.token_times
        return [later - earlier for earlier, later in pairwise(times)]


async def run(
    target: Target, asks: Sequence[Ask], progress: Callable[[Sample], None]
) -> tuple[list[Sample], float]:
    """All samples, and the seconds from the first start to the last end."""
    limits = httpx.Limits(max_connections=None, max_keepalive_connections=target.concurrency)
    headers = {"authorization": f"Bearer {target.api_key}"} if target.api_key else {}
    begun = time.perf_counter()
    samples: list[Sample] = []
    async with httpx.AsyncClient(limits=limits, headers=headers, timeout=_TIMEOUT_S) as client:

        async def one(ask: Ask) -> None:
            sample = await _measure(client, target, ask)
            samples.append(sample)
            progress(sample)

        if target.concurrency is not None:
            await _closed_loop(target.concurrency, asks, one)
        else:
            async with asyncio.TaskGroup() as group:
                async for ask in _arrivals(target, asks):
                    group.create_task(one(ask))
    return samples, time.perf_counter() - begun


async def _closed_loop(
    num_clients: int, asks: Sequence[Ask], one: Callable[[Ask], Awaitable[None]]
) -> None:
    remaining = iter(asks)

    async def client() -> None:
        for ask in remaining:
            await one(ask)

    await asyncio.gather(*(client() for _ in range(num_clients)))


async def _arrivals(target: Target, asks: Sequence[Ask]) -> AsyncIterator[Ask]:
    draw = random.Random(target.seed)
    due = time.perf_counter()
    for ask in asks:
        await asyncio.sleep(max(0.0, due - time.perf_counter()))
        yield ask
        due += draw.expovariate(target.request_rate or 1.0)


async def _measure(client: httpx.AsyncClient, target: Target, ask: Ask) -> Sample:
    body = {
        "model": target.model,
        "prompt": ask.prompt,
        "max_tokens": ask.num_tokens,
        "temperature": 0,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    sample = Sample(time.perf_counter())
    try:
        async with client.stream("POST", f"{target.url}/v1/completions", json=body) as answer:
            if answer.status_code != httpx.codes.OK:
                await answer.aread()
                sample.error = f"HTTP {answer.status_code}"
                return sample
            async for line in answer.aiter_lines():
                if line.startswith("data: {"):
                    _take(sample, json.loads(line[6:]))
    except httpx.HTTPError as error:
        sample.error = type(error).__name__
    if sample.error is None and not sample.token_times:
        sample.error = "no token came"
    return sample


def _take(sample: Sample, event: dict[str, object]) -> None:
    if "error" in event:
        sample.error = "error event"
    usage = event.get("usage")
    if isinstance(usage, dict):
        sample.num_tokens = usage["completion_tokens"]
        sample.num_prompt_tokens = usage["prompt_tokens"]
    choices = event.get("choices")
    if isinstance(choices, list) and choices and choices[0].get("text"):
        sample.token_times.append(time.perf_counter())
        if usage is None:
            sample.num_tokens += 1
