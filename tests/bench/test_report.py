import json
from pathlib import Path
from typing import Any

import pytest

from lite_llama.bench import report


def line(engine: str, median: float, **rest: Any) -> dict[str, Any]:
    return {
        "bench": "ops/add", "case": "2x3", "dtype": "bf16", "engine": engine, "median_us": median,
        "p20_us": median - 0.1, "p80_us": median + 0.1, "gpu": "Some GPU", "torch": "2.11",
        "triton": "3.6", **rest,
    }  # fmt: skip


def test_the_newest_line_of_a_case_counts_whatever_kernel_ran() -> None:
    lines = [line("lite_llama", 5.0, case="2x3 (tile)"), line("lite_llama", 4.0, case="2x3")]
    assert [kept["median_us"] for kept in report.newest(lines)] == [4.0]


def test_operators_are_compared_with_the_best_other_and_ties_are_called_ties() -> None:
    lines = [line("lite_llama", 2.0, roof_fraction=0.91), line("torch", 6.0), line("cublas", 4.0)]
    row = report.operator_table(lines).splitlines()[-1]
    assert row == "| add | 2x3 | bf16 | 2.00 | 91% | 4.00 cublas | 2.00 |"
    tie = report.operator_table([line("lite_llama", 2.0), line("torch", 2.1)])
    assert tie.splitlines()[-1].endswith("| 1.05 (tie) |")


def test_the_readme_keeps_all_but_its_tables(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("docs").mkdir()
    Path("bench/log").mkdir(parents=True)
    Path("README.md").write_text(f"before\n{report.BEGIN}\nold\n{report.END}\nafter\n")
    latency = line("lite_llama", 9500.0, bench="latency", tokens_per_s=105.26, ttft_ms=151.0)
    latency["case"] = "model b1 p100 g64"
    text = "\n".join(json.dumps(each) for each in (latency, line("lite_llama", 1.0)))
    Path("bench/log/some-gpu.jsonl").write_text(text + "\n")
    report.main()
    readme = Path("README.md").read_text()
    assert readme.startswith("before\n")
    assert readme.endswith("after\n")
    assert "old" not in readme
    assert "| model b1 p100 g64 | lite_llama | 9.500 | 105.3 | 151.0 |  |" in readme
    assert "Some GPU" in Path("docs/performance.md").read_text()
