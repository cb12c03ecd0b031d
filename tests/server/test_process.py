"""`lite-llama serve` as a process: keys, hosts, signals, logs, idle."""

import concurrent.futures
import os
import random
import re
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import openai
import psutil
import pytest

from lite_llama.server.config import Keys
from tests.server.servers import (
    ServerProcess,
    ask_long,
    check_death,
    server_process,
    wait_until,
)

KEYS = ("first-key", "second-key")
CANARY = "canary7391"


@pytest.fixture(scope="module")
def guarded(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    """A server with two keys, one from a file."""
    folder = tmp_path_factory.mktemp("guarded")
    (folder / "keys").write_text("second-key\n\n")
    flags = ("--api-key-file", str(folder / "keys"), "--max-model-len", "512")
    environment = {"LITE_LLAMA_API_KEY": "first-key"}
    with server_process(folder, *flags, environment=environment) as server:
        yield server


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


ROUTES = {
    "/": "GET",
    "/metrics": "GET",
    "/openapi.json": "GET",
    "/tokenize": "POST",
    "/detokenize": "POST",
    "/v1/models": "GET",
    "/v1/completions": "POST",
    "/v1/chat/completions": "POST",
    "/v1/messages": "POST",
    "/v1/responses": "POST",
    "/no/such/route": "GET",
}


@pytest.mark.parametrize("path", ROUTES)
def test_every_route_needs_a_key(guarded: ServerProcess, path: str) -> None:
    """X2."""
    url = guarded.url + path
    options: dict[str, Any] = {"json": {}} if ROUTES[path] == "POST" else {}
    for headers in ({}, bearer("wrong"), bearer("first-ke"), {"x-api-key": "no"}):
        answer = httpx.request(ROUTES[path], url, headers=headers, **options)
        assert answer.status_code == 401, (path, headers)
    for headers in (bearer("first-key"), bearer("second-key"), {"x-api-key": "first-key"}):
        assert httpx.request(ROUTES[path], url, headers=headers, **options).status_code != 401


def test_the_table_above_is_the_servers_own() -> None:
    import inspect

    from lite_llama.server.app import App

    source = inspect.getsource(App.__init__)
    declared = {part.split('"')[1] for part in source.split("\n") if ": Route(" in part}
    assert declared == {*ROUTES, "/health", "/ready"} - {"/no/such/route"}


@pytest.mark.parametrize(
    "path",
    ["//health", "/health/", "/./v1/models", "/health/../v1/models", "/%2e/metrics", "/ready;x"],
)
def test_tricks_with_the_path_do_not_get_past_the_key(guarded: ServerProcess, path: str) -> None:
    with httpx.Client() as client:
        request = client.build_request("GET", guarded.url)
        request.url = request.url.copy_with(raw_path=path.encode())
        assert client.send(request).status_code == 401


def test_health_and_readiness_need_no_key(guarded: ServerProcess) -> None:
    assert httpx.get(f"{guarded.url}/health").json() == {"status": "alive"}
    assert httpx.get(f"{guarded.url}/ready").json() == {"status": "ready"}


def test_a_browser_gives_the_key_as_a_password(guarded: ServerProcess) -> None:
    refused = httpx.get(f"{guarded.url}/")
    assert refused.headers["www-authenticate"].startswith("Basic ")
    assert httpx.get(f"{guarded.url}/", auth=("anyone", "first-key")).status_code == 200
    for value in ("Basic !!", "Basic ////", "Basic", "Digest x"):
        headers = {"authorization": value}
        assert httpx.get(f"{guarded.url}/", headers=headers).status_code == 401


def test_the_client_names_a_wrong_key(guarded: ServerProcess) -> None:
    client = openai.OpenAI(base_url=f"{guarded.url}/v1", api_key="wrong", max_retries=0)
    with pytest.raises(openai.AuthenticationError):
        client.models.list()


def test_two_keys_do_not_share_cached_prefixes(guarded: ServerProcess) -> None:
    """X15, by count: the second key finds nothing of the first one's prompt."""

    def cached(key: str) -> int:
        body = {"messages": [{"role": "user", "content": "same " * 40}], "max_tokens": 1}
        answer = httpx.post(
            f"{guarded.url}/v1/chat/completions", json=body, headers=bearer(key), timeout=30
        )
        return int(answer.json()["usage"]["prompt_tokens_details"]["cached_tokens"])

    assert [cached("first-key"), cached("second-key")] == [0, 0]
    assert cached("first-key") >= 32


def test_a_foreign_host_or_origin_is_refused(guarded: ServerProcess) -> None:
    """X4."""
    url = f"{guarded.url}/v1/models"
    for headers in ({"host": "evil.example"}, {"host": "127.0.0.1.evil.example"}, {"host": ""}):
        assert httpx.get(url, headers={**bearer("first-key"), **headers}).status_code == 403
    for origin in ("https://evil.example", "null", "http://127.0.0.1:1"):
        answer = httpx.get(url, headers={**bearer("first-key"), "origin": origin})
        assert answer.status_code == 403
        assert "access-control-allow-origin" not in answer.headers
    same = httpx.get(url, headers={**bearer("first-key"), "origin": guarded.url})
    assert same.status_code == 200


def listening(server: ServerProcess) -> list[Any]:
    """The addresses on which a server and its children take connections."""
    return [
        connection.laddr
        for each in server.family
        for connection in each.net_connections()
        if connection.status == psutil.CONN_LISTEN
    ]


def test_there_is_one_listener_on_loopback(guarded: ServerProcess) -> None:
    """X1."""
    assert [address.ip for address in listening(guarded)] == ["127.0.0.1"]


def ranks(server: ServerProcess) -> list[psutil.Process]:
    """The processes of the server's other ranks."""
    found = [each for each in server.family if "tp_worker" in " ".join(each.cmdline())]
    assert len(found) == 2
    return found


@contextmanager
def shared_server(folder: Path, *flags: str) -> Iterator[ServerProcess]:
    """A server whose model three ranks share, as it has three key heads; nothing of it is left."""
    files = shared_files()
    flags = ("--tensor-parallel-size", "3", *flags)
    with server_process(folder, *flags) as server:
        processes = server.family
        yield server
        assert psutil.wait_procs(processes, 2)[1] == []
    assert shared_files() <= files


def test_a_killed_rank_ends_the_process_with_an_error(tmp_path: Path) -> None:
    """L8, and before that X1: besides the server's own listener there are gloo's, on loopback."""
    with shared_server(tmp_path) as server:
        addresses = listening(server)
        assert {address.ip for address in addresses} == {"127.0.0.1"}
        assert len(addresses) == 1 + 3
        assert "Paris" in chat_text(server, "What is the capital of France?")
        killed = ranks(server)[1]
        check_death(server, 0, fault=killed.kill)
        log = server.read_log()
    said = rf"the engine has died: .*rank \d has died \(process {killed.pid}, exit code -9\)"
    assert re.search(said, log), log


def chat_text(server: ServerProcess, text: str) -> str:
    body = {"messages": [{"role": "user", "content": text}], "max_tokens": 8, "temperature": 0}
    answer = httpx.post(f"{server.url}/v1/chat/completions", json=body, timeout=60).json()
    return str(answer["choices"][0]["message"]["content"])


def test_a_stopped_rank_ends_the_process_with_an_error(tmp_path: Path) -> None:
    """L9. The watchdog looks once a second."""
    with shared_server(tmp_path, "--step-timeout", "3") as server:
        stopped = ranks(server)[0]
        check_death(server, 3 + 1, fault=stopped.suspend, exit_limit_s=1)


def test_no_prompt_text_reaches_logs_or_metrics(guarded: ServerProcess) -> None:
    """X12 and X13."""
    hostile = f"{CANARY}\r\n2026 INFO forged\x1b[31m"
    bodies: list[Any] = [
        {"messages": [{"role": "user", "content": hostile}], "max_tokens": 2},
        {"messages": [{"role": "user", "content": "x"}], "model": hostile},
        {"messages": [{"role": "user", "content": "x"}], "user": hostile, "max_tokens": 1},
        {"messages": [{"role": hostile, "content": hostile}]},
        {"messages": [{"role": "user", "content": "x"}], hostile: 1, "max_tokens": 1},
        {"messages": [{"role": "user", "content": "x"}], "regex": CANARY + "("},
    ]
    headers = {**bearer("first-key"), "x-request-id": "good-id"}
    for body in bodies:
        answer = httpx.post(
            f"{guarded.url}/v1/chat/completions", json=body, headers=headers, timeout=30
        )
        assert CANARY not in str(answer.headers)
    httpx.get(f"{guarded.url}/{CANARY}", headers=headers)
    metrics = httpx.get(f"{guarded.url}/metrics", headers=headers).text
    log = guarded.read_log()
    assert CANARY not in log
    assert CANARY not in metrics
    assert "forged" not in log
    assert "\x1b" not in log
    assert "id=good-id" in log


def test_the_log_has_one_line_a_request(guarded: ServerProcess) -> None:
    httpx.get(f"{guarded.url}/health", headers={"x-request-id": "count-me"})
    wait_until(lambda: guarded.read_log().count("id=count-me") == 1)


def test_metrics_have_their_names(guarded: ServerProcess) -> None:
    text = httpx.get(f"{guarded.url}/metrics", headers=bearer("first-key")).text
    for name in (
        "num_requests_running",
        "num_requests_waiting",
        "kv_cache_usage_perc",
        "prefix_cache_queries_total",
        "prefix_cache_hits_total",
        "prompt_tokens_total",
        "generation_tokens_total",
        "time_to_first_token_seconds_bucket",
        "inter_token_latency_seconds_bucket",
        "e2e_request_latency_seconds_bucket",
        "request_queue_time_seconds_bucket",
        "num_preemptions_total",
        "requests_shed_total",
    ):
        assert f"lite_llama:{name}" in text, name
    assert 'lite_llama:request_success_total{finished_reason="length"}' in text


def test_the_dashboard_shows_metrics_that_exist(guarded: ServerProcess) -> None:
    text = httpx.get(f"{guarded.url}/metrics", headers=bearer("first-key")).text
    dashboard = (Path(__file__).parents[2] / "docs" / "grafana.json").read_text()
    shown = set(re.findall(r"lite_llama:\w+", dashboard))
    assert len(shown) > 10
    assert all(name in text for name in shown)


def idle_share(family: list[psutil.Process], seconds: float) -> float:
    """The share of a core that processes take with which nobody does anything."""

    def used_s() -> float:
        times = [process.cpu_times() for process in family]
        return sum(each.user + each.system for each in times)

    time.sleep(1)
    before = used_s()
    time.sleep(seconds)
    return (used_s() - before) / seconds


def test_an_idle_server_takes_less_than_one_percent_of_a_core(guarded: ServerProcess) -> None:
    """L13, for 5 of its 60 seconds."""
    share = idle_share(guarded.family, 5)
    if share >= 0.01 and (least := empty_share()) > 0.005:
        pytest.skip(f"an event loop that does nothing takes {least:.1%} of a core here")
    assert share < 0.01


def empty_share() -> float:
    """What an event loop that wakes ten times a second and does nothing takes.

    No server takes less. On some virtual machines each waking is charged with milliseconds.
    """
    code = """
import asyncio
async def main():
    while True:
        await asyncio.sleep(0.1)
asyncio.run(main())
"""
    with subprocess.Popen([sys.executable, "-c", code]) as process:
        try:
            return idle_share([psutil.Process(process.pid)], 5)
        finally:
            process.kill()


def check_drain(folder: Path, num_streams: int, num_tokens: int, *flags: str) -> float:
    """SIGTERM under streams: none is lost, no request comes in; seconds until /ready says so."""
    with (
        server_process(folder, *flags) as server,
        concurrent.futures.ThreadPoolExecutor(num_streams) as pool,
    ):
        streams = [pool.submit(ask_long, server.url, num_tokens) for _ in range(num_streams)]
        wait_until(lambda: server.metric("num_requests_running") == num_streams, 60)
        with httpx.Client(base_url=server.url) as client:
            client.get("/health")
            server.process.send_signal(signal.SIGTERM)
            sent = time.monotonic()
            while client.get("/ready").status_code != 503:
                assert time.monotonic() - sent < 1
            took_s = time.monotonic() - sent
            body = {"messages": [{"role": "user", "content": "Hi"}]}
            assert client.post("/v1/chat/completions", json=body).status_code == 503
        for stream in streams:
            events = stream.result()
            assert events[-1]["choices"][0]["finish_reason"] == "length"
        assert server.process.wait(10) == 0
    return took_s


def test_sigterm_drains_and_exits_with_zero(tmp_path: Path) -> None:
    """L6, with 12 of its 50 streams."""
    assert check_drain(tmp_path, 12, 60) < 0.5


def test_a_drain_that_takes_too_long_ends_with_an_error_event(tmp_path: Path) -> None:
    flags = ("--shutdown-timeout", "0.5")
    with (
        server_process(tmp_path, *flags) as server,
        concurrent.futures.ThreadPoolExecutor() as pool,
    ):
        stream = pool.submit(ask_long, server.url, 4000)
        wait_until(lambda: "num_requests_running 1.0" in httpx.get(f"{server.url}/metrics").text)
        server.process.send_signal(signal.SIGTERM)
        assert stream.result()[-1]["error"]["type"] == "overloaded_error"
        assert server.process.wait(10) == 0


def test_a_second_signal_exits_at_once(tmp_path: Path) -> None:
    with server_process(tmp_path) as server, concurrent.futures.ThreadPoolExecutor() as pool:
        stream = pool.submit(ask_long, server.url, 4000)
        wait_until(lambda: "num_requests_running 1.0" in httpx.get(f"{server.url}/metrics").text)
        server.process.send_signal(signal.SIGTERM)
        wait_until(lambda: httpx.get(f"{server.url}/ready").status_code == 503)
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(1) != 0
        assert isinstance(stream.exception(10), httpx.RemoteProtocolError)


def shared_files() -> set[str]:
    return {path.name for path in Path("/dev/shm").iterdir()}


@contextmanager
def broken_server(folder: Path, fault: str, *flags: str) -> Iterator[ServerProcess]:
    """A server whose engine runs `fault` in its tenth step with requests; nothing of it is left at
    the end."""
    (folder / "broken_engine.py").write_text(
        "import sys, time\n"
        "from lite_llama.engine.engine import Engine\n"
        "from lite_llama.server.engine_process import main\n"
        "step, count = Engine.step, 0\n"
        "def broken(engine):\n"
        "    global count\n"
        "    if engine.scheduler.running:\n"
        "        count += 1\n"
        "        if count == 10:\n"
        "            print('fault at', time.time(), file=sys.stderr, flush=True)\n"
        f"            {fault}\n"
        "    return step(engine)\n"
        "Engine.step = broken\n"
    )
    (folder / "broken.py").write_text(
        "import functools\n"
        "from lite_llama.server import run\n"
        "run.serve = functools.partial(run.serve, engine_main='broken_engine')\n"
        "from lite_llama.cli import main\n"
        "main()\n"
    )
    environment = {"PYTHONPATH": os.pathsep.join([str(folder), *sys.path])}
    with (
        leaves_nothing(),
        server_process(folder, *flags, main="broken", environment=environment) as server,
    ):
        yield server


@contextmanager
def leaves_nothing() -> Iterator[None]:
    """Within, processes are started that are to be gone at the end, with all they have shared."""
    files = shared_files()
    others = set(psutil.Process().children(recursive=True))
    yield
    mine = [each for each in psutil.Process().children(recursive=True) if each not in others]
    assert psutil.wait_procs(mine, 2)[1] == []
    assert shared_files() <= files


def test_a_dead_engine_ends_the_process_with_an_error(tmp_path: Path) -> None:
    with broken_server(tmp_path, "raise SystemExit('injected')") as server:
        check_death(server, 0)
        assert "the engine has died: SystemExit: injected" in server.read_log()


@pytest.mark.parametrize("hang", ["time.sleep(60)", "while True: pass"])
def test_a_hanging_step_ends_the_process_with_an_error(tmp_path: Path, hang: str) -> None:
    """The watchdog dumps stacks, too. It looks once a second."""
    with broken_server(tmp_path, hang, "--step-timeout", "1") as server:
        check_death(server, 1 + 1)
        assert "in broken" in server.read_log()


def engine_of(server: ServerProcess) -> psutil.Process:
    """The child that has the weights."""
    [found] = [
        each for each in server.family[1:] if "lite_llama.server.engine_process" in each.cmdline()
    ]
    return found


def test_a_killed_engine_ends_the_process_with_an_error(tmp_path: Path) -> None:
    """kill -9 in the middle of a stream."""

    def kill() -> None:
        wait_until(lambda: server.metric("num_requests_running") == 1)
        with server.log.open("a") as log:
            print("fault at", time.time(), file=log, flush=True)
        engine_of(server).kill()

    with (
        leaves_nothing(),
        server_process(tmp_path) as server,
        concurrent.futures.ThreadPoolExecutor() as pool,
    ):
        killed = pool.submit(kill)
        check_death(server, 0)
        killed.result()
        assert "the engine has died: its process was ended by SIGKILL" in server.read_log()


def test_a_killed_server_leaves_nothing_behind(tmp_path: Path) -> None:
    files = shared_files()
    with (
        server_process(tmp_path) as server,
        concurrent.futures.ThreadPoolExecutor() as pool,
    ):
        stream = pool.submit(ask_long, server.url, 2000)
        wait_until(lambda: server.metric("num_requests_running") == 1)
        processes = server.family
        assert engine_of(server) in processes
        assert len(processes) > 2  # the chat template's
        server.process.kill()
        assert isinstance(stream.exception(1), httpx.RemoteProtocolError)
        assert psutil.wait_procs(processes, 2)[1] == []
    assert shared_files() <= files


def test_a_stopped_server_takes_its_hanging_engine_along(tmp_path: Path) -> None:
    """The engine cannot answer, as it has been stopped; the end of its parent ends it."""
    with server_process(tmp_path) as server:
        engine = engine_of(server)
        engine.suspend()
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == 0
        assert psutil.wait_procs([engine], 2)[1] == []


def test_the_http_process_has_neither_torch_nor_weights(guarded: ServerProcess) -> None:
    engine, front = engine_of(guarded), guarded.family[0]
    mapped = {Path(each.path).name for each in front.memory_maps()}
    assert not any(name.startswith("libtorch") for name in mapped)
    assert any(Path(each.path).name.startswith("libtorch") for each in engine.memory_maps())
    assert front.memory_info().rss < 160e6
    assert front.memory_info().rss < engine.memory_info().rss / 2


def test_a_model_that_does_not_load_is_one_line(tmp_path: Path) -> None:
    """The engine's process says it, this one prints it."""
    import subprocess

    def refused(*flags: str) -> str:
        command = [sys.executable, "-m", "lite_llama.cli", "serve", "--port", "0", *flags]
        done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        return done.stderr.splitlines()[-1]

    assert refused(str(tmp_path / "none")).startswith("lite-llama: ")
    assert refused("--max-model-len", "99999999").startswith(
        "lite-llama: max_model_len is 99999999"
    )


def test_a_port_in_use_is_one_line(guarded: ServerProcess) -> None:
    import subprocess

    port = guarded.url.rpartition(":")[2]
    command = [sys.executable, "-m", "lite_llama.cli", "serve", "--port", port]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("lite-llama: cannot listen on 127.0.0.1:")
    assert "Traceback" not in done.stderr


def test_keys_are_compared_in_constant_time() -> None:
    """X3: the time does not depend on how much of a key is right."""
    near, far = (statistics.median(taken) for taken in key_times(3000))
    assert abs(near - far) < 0.1 * far
    assert Keys(["k" * 64]).salt_of("k" * 64) is not None


def key_times(num_samples: int) -> tuple[list[int], list[int]]:
    """Nanoseconds to refuse a key that is nearly right, and one that is wrong from its start."""
    keys = Keys(["k" * 64])
    draw = random.Random(os.urandom(8))
    times: tuple[list[int], list[int]] = ([], [])
    while min(map(len, times)) < num_samples:
        which = draw.randrange(2)
        # Each a string of its own, made alike: what is asked is not where one lies in memory.
        key = "kz"[which] * 63 + draw.choice("abcdefghij")
        begun = time.perf_counter_ns()
        keys.salt_of(key)
        took = time.perf_counter_ns() - begun
        times[which].append(took)
    return times[0][:num_samples], times[1][:num_samples]
