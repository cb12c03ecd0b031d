"""L16, replicas on Ray Serve: in `make matrix` and `make soak`, as it takes a minute."""

import concurrent.futures
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.server.servers import wait_until

pytest.importorskip("ray.serve", reason="needs the extra ray: pip install 'lite-llama[ray]'")

ROOT = Path(__file__).parents[2]
NUM_REPLICAS, MAX_NUM_SEQS, MAX_QUEUED = 2, 4, 6
CONFIG = """
http_options: {{host: 127.0.0.1, port: {port}}}
applications:
  - name: lite_llama
    import_path: lite_llama.serve_ray:app
    route_prefix: /
    args:
      num_replicas: {num_replicas}
      num_cpus: 0.5
      max_model_len: 1024
      max_num_seqs: {max_num_seqs}
      max_num_queued_reqs: {max_queued}
      num_blocks: 256
"""

pytestmark = pytest.mark.timeout(180)


class Cluster:
    """`serve run` on this machine."""

    def __init__(self, port: int) -> None:
        self.url = f"http://127.0.0.1:{port}"

    def post(self, text: str, **fields: Any) -> httpx.Response:
        body = {"messages": [{"role": "user", "content": text}], **fields}
        return httpx.post(f"{self.url}/v1/chat/completions", json=body, timeout=60)

    def figures(self, name: str) -> dict[str, float]:
        """A metric without labels of its own, by replica."""
        time.sleep(0.2)  # so that those who poll are not the load
        lines = httpx.get(f"{self.url}/metrics", timeout=10).text.splitlines()
        found = [line.rpartition(" ") for line in lines if line.startswith(f"lite_llama:{name}{{")]
        return {head.split('"')[1]: float(value) for head, _, value in found}

    def is_complete(self) -> bool:
        return list(self.figures("ready").values()) == [1.0] * NUM_REPLICAS

    def is_idle(self) -> bool:
        used = self.figures("kv_cache_usage_perc")
        running = self.figures("num_requests_running")
        return len(used) == NUM_REPLICAS and not any((*used.values(), *running.values()))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("ray")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    config = folder / "serve.yaml"
    config.write_text(
        CONFIG.format(
            port=port,
            num_replicas=NUM_REPLICAS,
            max_num_seqs=MAX_NUM_SEQS,
            max_queued=MAX_QUEUED,
        )
    )
    environment = (f"PYTHONPATH={ROOT}", "OMP_NUM_THREADS=1", "RAY_USAGE_STATS_ENABLED=0")
    log = folder / "log"
    with log.open("wb") as stream:
        process = subprocess.Popen(
            ["env", *environment, sys.executable, "-m", "ray.serve.scripts", "run", str(config)],
            stdout=stream,
            stderr=stream,
            cwd=folder,
        )
    cluster = Cluster(port)
    try:
        wait_until(lambda: process.poll() is not None or cluster.is_complete(), 120)
        assert process.poll() is None, log.read_text()
        yield cluster
    finally:
        family = psutil.Process(process.pid).children(recursive=True)
        process.send_signal(signal.SIGINT)
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
        for child in psutil.wait_procs(family, 5)[1]:
            child.kill()


def engine_processes() -> list[psutil.Process]:
    title = "ray::ServeReplica:lite_llama:Engine"
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if (process.info["cmdline"] or [""])[0].startswith(title)
    ]


def events(answer: httpx.Response) -> list[Any]:
    found = [part.removeprefix("data: ") for part in answer.text.split("\n\n")]
    return [
        part if part == "[DONE]" else json.loads(part)
        for part in found
        if part.startswith(("{", "["))
    ]


def test_every_turn_of_a_conversation_goes_to_one_replica(cluster: Cluster) -> None:
    def converse(number: int) -> tuple[set[str], int]:
        messages = [{"role": "user", "content": f"Tell me about the number {number}. " * 8}]
        replicas, num_cached = set(), 0
        for _ in range(4):
            body = {"messages": messages, "max_tokens": 8}
            answer = httpx.post(f"{cluster.url}/v1/chat/completions", json=body, timeout=60)
            assert answer.status_code == 200, answer.text
            replicas.add(answer.headers["x-replica"])
            num_cached = answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"]
            messages.append(answer.json()["choices"][0]["message"])
            messages.append({"role": "user", "content": "Go on."})
        return replicas, num_cached

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        conversations = list(pool.map(converse, range(10)))
    assert [len(replicas) for replicas, _ in conversations] == [1] * 10
    assert min(num_cached for _, num_cached in conversations) >= 64
    assert len(set.union(*(replicas for replicas, _ in conversations))) == NUM_REPLICAS


@pytest.mark.parametrize("stream", [True, False])
def test_a_disconnect_frees_the_blocks_in_the_replica(cluster: Cluster, *, stream: bool) -> None:
    body = {"messages": [{"role": "user", "content": "Hi"}], "max_tokens": 900, "ignore_eos": True}
    url = f"{cluster.url}/v1/chat/completions"
    with httpx.Client(timeout=60) as client, concurrent.futures.ThreadPoolExecutor(1) as pool:
        asked = pool.submit(client.post, url, json=body | {"stream": stream})
        wait_until(lambda: sum(cluster.figures("num_requests_running").values()) == 1)
        # Closing the client under a running request ends its connection.
        for connection in client._transport._pool.connections:  # type: ignore[attr-defined]
            connection._connection._network_stream.get_extra_info("socket").shutdown(2)
        assert isinstance(asked.exception(10), httpx.TransportError)
        wait_until(cluster.is_idle, 3)


def test_what_is_too_much_is_a_503_with_retry_after(cluster: Cluster) -> None:
    with concurrent.futures.ThreadPoolExecutor(48) as pool:
        asks = [
            pool.submit(cluster.post, f"Question {number}", max_tokens=30, ignore_eos=True)
            for number in range(48)
        ]
        answers = [each.result() for each in asks]
    codes = Counter(answer.status_code for answer in answers)
    assert set(codes) == {200, 503}
    assert codes[200] >= NUM_REPLICAS * MAX_QUEUED
    for answer in answers:
        if answer.status_code == 503:
            assert int(answer.headers["retry-after"]) >= 1
            assert answer.json()["error"]["type"] == "overloaded_error"
    wait_until(cluster.is_idle)


def test_a_killed_replica_loses_no_new_request_and_is_replaced(cluster: Cluster) -> None:
    answered: list[tuple[float, int]] = []  # when it was asked, and the status
    ending = threading.Event()

    def load(number: int) -> None:
        while not ending.wait(0.1):
            asked = time.monotonic()
            code = cluster.post(f"Question {number} {asked}", max_tokens=8).status_code
            answered.append((asked, code))

    def stream(number: int) -> list[Any]:
        fields = {"max_tokens": 150, "ignore_eos": True, "stream": True}
        return events(cluster.post(f"Story {number}", **fields))

    before = set(cluster.figures("ready"))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        streams = [pool.submit(stream, number) for number in range(4)]
        wait_until(lambda: min(cluster.figures("num_requests_running").values()) >= 1)
        loads = [pool.submit(load, number) for number in range(2)]
        time.sleep(1)
        engine_processes()[0].kill()
        killed = time.monotonic()
        wait_until(lambda: bool(set(cluster.figures("ready")) - before), 60)
        wait_until(cluster.is_complete, 60)
        replaced_s = time.monotonic() - killed
        ending.set()
        for each in loads:
            each.result(60)
        endings = [each.result(60)[-1] for each in streams]
    print(f"replaced after {replaced_s:.1f} s, {len(answered)} requests beside")
    assert {code for _, code in answered} == {200}
    assert sum(asked > killed for asked, _ in answered) >= 4
    assert replaced_s <= 10
    # A stream that was under way ends with an event that says so, never in silence.
    assert "[DONE]" in endings
    broken = [ending for ending in endings if ending != "[DONE]"]
    assert broken
    assert {ending["error"]["type"] for ending in broken} == {"overloaded_error"}
