"""`lite-llama bench serve`, against a real server."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lite_llama.bench.serve import workloads
from lite_llama.bench.serve.load import Sample
from lite_llama.bench.serve.report import spread, summarise
from lite_llama.errors import ConfigError
from tests.server.servers import MODEL, server_process


def test_a_spread_is_mean_median_and_nearest_rank() -> None:
    each = spread([0.001 * i for i in range(1, 101)])
    assert (each.mean_ms, each.median_ms, each.p99_ms) == pytest.approx((50.5, 50.5, 99.0))
    assert spread([0.007]).p99_ms == pytest.approx(7)


def test_figures_follow_from_the_token_times() -> None:
    good = Sample(10.0, [10.5, 10.6, 10.8], num_tokens=3, num_prompt_tokens=7)
    summary = summarise([good, Sample(10.0, error="HTTP 503")], 2.0)
    assert (summary.num_served, summary.errors) == (1, {"HTTP 503": 1})
    assert (summary.tokens_per_s, summary.prompt_tokens_per_s) == (1.5, 3.5)
    medians = {name: each.median_ms for name, each in summary.spreads.items()}
    assert medians == pytest.approx({"TTFT": 500, "TPOT": 150, "ITL": 150, "E2E": 800})


def test_a_shared_prefix_is_shared_and_random_texts_repeat_by_seed() -> None:
    asks = workloads.shared_prefix(3, 40, 5, seed=1)
    assert len({ask.prompt[:60] for ask in asks}) == 1
    assert len({ask.prompt for ask in asks}) == 3
    assert workloads.random_texts(3, 40, 5, 1) == workloads.random_texts(3, 40, 5, 1)
    assert workloads.random_texts(3, 40, 5, 1) != workloads.random_texts(3, 40, 5, 2)


def test_a_broken_trace_names_its_line(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text('{"prompt": "a", "max_tokens": 3}\n{"text": "b"}\n')
    with pytest.raises(ConfigError, match="line 2"):
        workloads.trace(path, 5)
    path.write_text('{"prompt": "a", "max_tokens": 3}\n{"prompt": "b"}\n')
    assert [ask.num_tokens for ask in workloads.trace(path, 5)] == [3, 5]


def test_both_loops_measure_a_real_server(tmp_path: Path) -> None:
    with server_process(tmp_path) as server:
        for flags in (("--concurrency", "3"), ("--request-rate", "20")):
            output, plot = tmp_path / "figures.json", tmp_path / "plot.svg"
            command = [sys.executable, "-m", "lite_llama.cli", "bench", "serve", MODEL]
            sizes = ["--num-requests", "6", "--prompt-len", "20", "--gen-len", "5"]
            files = ["--output", str(output), "--plot", str(plot)]
            done = subprocess.run(
                [*command, "--url", server.url, *sizes, *files, *flags],
                capture_output=True,
                text=True,
                timeout=120,
                check=True,
            )
            figures = json.loads(output.read_text())
            assert "TTFT" in done.stdout
            assert figures["num_served"] == 6
            assert figures["tokens_per_s"] == pytest.approx(30 / figures["duration_s"])
            assert 0 < figures["spreads"]["TTFT"]["median_ms"] < 5000
            assert plot.read_text().startswith("<?xml")
