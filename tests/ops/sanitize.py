"""Long form of K2, by `make sanitize`: compute-sanitizer over every operator's smallest case."""

import os
import shutil
import subprocess
import sys

import pytest
import torch

TOOL = shutil.which("compute-sanitizer")
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: nothing to sanitize"),
    pytest.mark.skipif(TOOL is None, reason="compute-sanitizer is not on PATH"),
    pytest.mark.timeout(1800),
]


def sanitize(tool: str, *options: str) -> None:
    assert TOOL is not None
    # API errors reach Python as exceptions; of torch's own probes some fail on purpose.
    command = [TOOL, "--tool", tool, "--error-exitcode", "9", "--report-api-errors", "no", *options]
    # With a cache of its own, torch hands out the rest of a block that a kernel may then touch.
    environment = os.environ | {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}  # noqa: TID251
    done = subprocess.run(
        [*command, sys.executable, "-m", "tests.ops.smallest"],
        env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, (
        f"exit code {done.returncode}\n{done.stdout[-8000:]}{done.stderr[-2000:]}"
    )


def test_memcheck_reports_nothing() -> None:
    sanitize("memcheck")


def test_racecheck_reports_nothing() -> None:
    # Of this one it reports what Triton generates to hand work to warps: a store, a barrier of all
    # of them, a load. It does not follow barriers that only some of a program's code paths name.
    sanitize("racecheck", "--kernel-name-exclude", "kernel_substring=attention_prefill_hopper")
