"""Row L12: requests of every kind for a while, and whether what the server holds grows."""

import concurrent.futures
import contextlib
import random
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np

from tests.server.servers import ServerProcess

KINDS: list[dict[str, Any]] = [
    {},
    {"stream": True},
    {"n": 2},
    {"regex": "[ab]{4}"},
    {"logprobs": True, "top_logprobs": 3},
    {"stop": ["the"], "temperature": 0},
]


@dataclass(frozen=True)
class Mark:
    """What the server holds at a moment."""

    elapsed_s: float
    rss: list[int]  # of each process
    num_files: int
    gpu_bytes: int


def load(
    server: ServerProcess,
    length_s: float,
    num_clients: int = 1,
    read_gpu_bytes: Callable[[], int] = lambda: 0,
) -> list[Mark]:
    """Closed loops for so long; a mark an answer, once a sixth of the time is over."""
    begun = time.monotonic()

    def hold(number: int, client: httpx.Client) -> list[Mark]:
        draw = random.Random(number)
        marks: list[Mark] = []
        while (elapsed := time.monotonic() - begun) < length_s:
            # Twenty lengths, all of which come within the first sixth: torch keeps some 36 kB
            # for a length of prompt it has not seen, and rare ones would come for hours.
            text = f"Question {draw.random():.12f}" + " word" * draw.randrange(20)
            messages = [{"role": "user", "content": text}]
            body = {"messages": messages, "max_tokens": 8, **draw.choice(KINDS)}
            answer = client.post("/v1/chat/completions", json=body)
            assert answer.status_code == 200, answer.text
            if elapsed > length_s / 6:
                held = (server.rss_of_each, server.num_fds, read_gpu_bytes())
                marks.append(Mark(elapsed, *held))
        return marks

    with contextlib.ExitStack() as stack:
        # All stay connected until the last has its last mark, as a connection is a descriptor.
        clients = [
            stack.enter_context(httpx.Client(base_url=server.url, timeout=60))
            for _ in range(num_clients)
        ]
        pool = stack.enter_context(concurrent.futures.ThreadPoolExecutor(num_clients))
        parts = list(pool.map(hold, range(num_clients), clients))
    return sorted((mark for part in parts for mark in part), key=lambda mark: mark.elapsed_s)


def check_flat(marks: list[Mark]) -> None:
    """The slope is that of a straight line through all marks."""
    of_each = np.array([mark.rss for mark in marks], float)
    slopes = np.polyfit([mark.elapsed_s for mark in marks], of_each, 1)[0] * 3600
    sizes, slope = of_each.sum(1), slopes.sum()
    files = [mark.num_files for mark in marks]
    gpu = [mark.gpu_bytes for mark in marks]
    print(f"RSS {sizes[0] / 1e6:.1f} to {sizes[-1] / 1e6:.1f} MB: {slope / 1e6:+.2f} MB/h")
    print("of each process " + ", ".join(f"{each / 1e6:+.2f}" for each in slopes))
    print(f"{len(marks)} requests, file descriptors {min(files)} to {max(files)}")
    print(f"GPU {min(gpu) / 1e6:.1f} to {max(gpu) / 1e6:.1f} MB")
    assert slope < 1e6
    assert max(files) - min(files) <= 2
    assert max(gpu) == min(gpu)
