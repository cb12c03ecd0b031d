"""The long forms of rows L and X of the matrix: `make soak`. Not part of a plain pytest run."""

import asyncio
import ctypes
import shutil
import signal
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import psutil
import pytest

from lite_llama.bench.serve.load import Sample, Target, run
from lite_llama.bench.serve.workloads import Ask
from lite_llama.engine.engine import Engine
from lite_llama.llm import LLM
from lite_llama.server.config import ServeConfig
from tests.server import mixed_load
from tests.server.servers import MODEL, LocalServer, server_process, wait_until
from tests.server.test_faults import hold_a_round
from tests.server.test_isolation import OUTSIDE, without_a_network
from tests.server.test_process import check_drain, idle_share, key_times

pytestmark = pytest.mark.timeout(3600)
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("stream", [True, False], ids=["L1", "L2"])
def test_10_rounds_of_500_requests_with_disconnects(
    monkeypatch: pytest.MonkeyPatch, *, stream: bool
) -> None:
    """L1 and L2: the pool's books are checked after each step."""
    step = Engine.step
    num_steps = 0

    def checking(engine: Engine) -> Any:
        nonlocal num_steps
        outputs = step(engine)
        engine.scheduler.pool.check()
        num_steps += 1
        return outputs

    monkeypatch.setattr(Engine, "step", checking)
    with LLM(device="cpu", max_model_len=256, max_num_seqs=64, num_blocks=1200) as llm:
        limits = ServeConfig(max_num_queued_reqs=500, max_num_queued_tokens=50_000)
        server = LocalServer(llm, limits)
        for number in range(10):
            codes = asyncio.run(
                hold_a_round(server.url, number, num=500, within_s=8.0, stream=stream, num_tokens=4)
            )
            assert set(codes) <= {0, 200}
            assert codes.count(200) > 300
            wait_until(server.is_idle, 1)
        assert server.service.engine.death is None
        assert num_steps > 100
        server.stop()


def p99(values: list[float]) -> float:
    return sorted(values)[int(len(values) * 0.99)]


def test_five_times_the_capacity_for_a_minute(tmp_path: Path) -> None:
    """L3: capacity is what as many clients get as the queue holds."""
    num_queued = 16
    flags = ("--max-num-seqs", "4", "--max-num-queued-reqs", str(num_queued))

    def asks(num: int) -> list[Ask]:
        return [Ask(f"Question number {i}: what is {i} plus {i}?", 16) for i in range(num)]

    with server_process(tmp_path, *flags, "--max-model-len", "512") as server:

        def load(num: int, **how: Any) -> tuple[list[Sample], float]:
            target = Target(server.url, MODEL, **how)
            return asyncio.run(run(target, asks(num), lambda _: None))

        load(2 * num_queued, concurrency=num_queued)  # warm up
        full, took_s = load(200, concurrency=num_queued)
        assert all(sample.error is None for sample in full)
        rate = len(full) / took_s
        before = server.rss
        samples, took_s = load(int(5 * rate * 60), request_rate=5 * rate)
        print(f"capacity {rate:.1f} requests/s, {len(samples)} offered in {took_s:.0f} s")
        assert took_s > 50
        accepted = [sample for sample in samples if sample.error is None]
        shed = [sample for sample in samples if sample.error is not None]
        assert len(accepted) > 0.7 * rate * took_s
        assert all("503" in str(sample.error) for sample in shed), shed[0].error
        assert len(shed) > len(accepted)
        of_accepted = p99([sample.ttft_s for sample in accepted])
        of_full = p99([sample.ttft_s for sample in full])
        print(f"{len(accepted)} accepted; p99 TTFT {of_accepted:.2f} s, full queue {of_full:.2f} s")
        assert of_accepted <= 1.5 * of_full
        assert server.rss - before < 20e6
        wait_until(server.is_idle)
        refused = fill_and_ask(server.url, num_queued)
        assert int(refused.headers["retry-after"]) >= 1


def fill_and_ask(url: str, num: int) -> httpx.Response:
    """The answer to one request more than the queue holds."""

    async def ask() -> httpx.Response:
        body = {"prompt": "Hi", "max_tokens": 100, "ignore_eos": True}
        async with httpx.AsyncClient(base_url=url, timeout=60) as client:
            posts = [client.post("/v1/completions", json=body) for _ in range(num + 8)]
            answers = await asyncio.gather(*posts)
        return next(answer for answer in answers if answer.status_code != 200)

    answer = asyncio.run(ask())
    assert answer.status_code == 503
    return answer


def test_sigterm_lets_50_streams_finish(tmp_path: Path) -> None:
    """L6."""
    sizes = ("--max-num-seqs", "50", "--max-model-len", "256", "--num-blocks", "700")
    assert check_drain(tmp_path, 50, 60, *sizes, "--shutdown-timeout", "120") < 0.1


def test_half_an_hour_of_mixed_load(
    tmp_path: Path, pytestconfig: pytest.Config, record_property: Any
) -> None:
    """L12."""
    length_s = pytestconfig.getoption("--soak-minutes") * 60
    if length_s < 1800:
        record_property("shortened", f"{length_s / 60:.0f} of 30 minutes")
    with server_process(tmp_path, "--max-model-len", "512") as server:
        mixed_load.check_flat(mixed_load.load(server, length_s))


def test_a_minute_of_idleness_costs_nothing(tmp_path: Path) -> None:
    """L13."""
    with server_process(tmp_path) as server:
        share = idle_share(server.family, 60)
    print(f"{share:.2%} of a core")
    assert share < 0.01


def test_20_llms_leave_nothing_behind() -> None:
    """L15, without its GPU half."""
    process = psutil.Process()
    handlers = {number: signal.getsignal(number) for number in signal.valid_signals()}
    sizes = []
    for _ in range(20):
        with LLM(device="cpu", max_model_len=256, num_blocks=64) as llm:
            llm.chat([{"role": "user", "content": "Hi"}])
        ctypes.CDLL(None).malloc_trim(0)  # what the C library keeps for its own next use
        sizes.append(process.memory_info().rss)
    print("RSS in MB:", [round(size / 1e6) for size in sizes])
    assert max(sizes[10:]) - min(sizes[10:]) < 10e6
    assert {number: signal.getsignal(number) for number in signal.valid_signals()} == handlers


def sign_test_z(first: list[int], second: list[int], size: int = 100) -> float:
    """The z of a sign test on the medians of blocks measured at the same time, as a shared machine
    is slow for a while at a time."""
    medians = [
        [statistics.median(times[start : start + size]) for start in range(0, len(times), size)]
        for times in (first, second)
    ]
    signs = [np.sign(a - b) for a, b in zip(*medians, strict=True)]
    return float(sum(signs) / max(1, np.count_nonzero(signs)) ** 0.5)


def test_the_sign_test_sees_no_difference_between_keys() -> None:
    """X3: |z| < 2.58 is p > 0.01. One in a hundred fails by chance, so it is asked up to thrice."""
    times = key_times(20_000)
    shifted = [taken + 20 for taken in times[1]]  # what 20 ns of a leak would look like
    assert abs(sign_test_z(times[0], shifted)) > 2.58
    found = []
    while len(found) < 3 and (not found or abs(found[-1]) >= 2.58):
        found.append(sign_test_z(*key_times(20_000)))
    print("z =", found)
    assert abs(found[-1]) < 2.58


@pytest.mark.skipif(OUTSIDE is not None, reason=str(OUTSIDE))
def test_rows_a_and_l_pass_without_a_network() -> None:
    """X16."""
    names = ("limits", "faults", "chat", "completions", "process")
    done = without_a_network(*(f"tests/server/test_{name}.py" for name in names))
    assert done.returncode == 0, done.stdout[-3000:]


def test_the_suite_passes_without_assert_statements() -> None:
    """X17: pytest's own asserts are kept, as it rewrites them."""
    folders = ("server", "text", "engine", "checkpoint", "cache")
    command = [sys.executable, "-O", "-m", "pytest", "-p", "no:cacheprovider", "-rf", "--tb=short"]
    done = subprocess.run(
        [*command, *(f"tests/{folder}" for folder in folders)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=1800,
        check=False,
    )
    print(done.stdout.splitlines()[-1])
    assert done.returncode == 0, done.stdout[-3000:]


def test_no_pinned_package_has_a_known_vulnerability(pytestconfig: pytest.Config) -> None:
    """X17: pip-audit asks a service on the internet; found by --clients or on the PATH."""
    audit = shutil.which("pip-audit", path=pytestconfig.getoption("--clients"))
    if audit is None:
        pytest.skip("pip-audit is not in --clients or PATH: pip install pip-audit")
    command = [audit, "--disable-pip", "--no-deps", "-r", "constraints.txt"]
    done = subprocess.run(
        command, cwd=ROOT, capture_output=True, text=True, timeout=300, check=False
    )
    said = done.stdout + done.stderr
    if "ConnectionError" in said or "could not be audited: torch" in said:
        pytest.skip("no advisory service can be reached from here")
    assert done.returncode == 0, said
