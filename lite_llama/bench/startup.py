"""From the launch of `lite-llama generate` to its first text: `python -m lite_llama.bench.startup`.

A process of its own each time, with the default model and the question of `make demo`; the answer
must be right. Peak memory is that process's largest resident set (the system counts at least its
parent's, which is smaller).
"""

import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch

from lite_llama.bench import record
from lite_llama.checkpoint.default_model import find_default_model

_ROUNDS = 5
_COMMAND = (
    sys.executable, "-m", "lite_llama.cli", "generate", "--temperature", "0",
    "What is the capital of France?",
)  # fmt: skip


def main(log: Path = record.DEFAULT_FOLDER) -> None:
    """Measure, print, append to the log."""
    line = measure(_COMMAND, "Paris") | {"case": find_default_model().stem}
    print(line)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    record.append(record.describe_run(device), [line], log)


def measure(command: tuple[str, ...], expected: str) -> dict[str, Any]:
    """A log line of a command that must print `expected`: first output, its end, peak memory."""
    firsts, wholes, peaks = [], [], []
    for _ in range(_ROUNDS):
        begin = time.perf_counter()
        # The pipe is read and the child awaited here, for its resource usage.
        child = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
        if child.stdout is None:
            raise AssertionError("the child was started with a pipe")
        text = child.stdout.read(1)
        firsts.append(time.perf_counter() - begin)
        text += child.stdout.read()
        _, status, usage = os.wait4(child.pid, 0)
        wholes.append(time.perf_counter() - begin)
        child.returncode = os.waitstatus_to_exitcode(status)
        peaks.append(usage.ru_maxrss / 1024)
        if child.returncode != 0 or expected not in text.decode():
            raise RuntimeError(f"exit code {child.returncode}, output {text!r}, not {expected!r}")
    return {
        "bench": "startup",
        "engine": "lite_llama",
        "median_us": statistics.median(firsts) * 1e6,
        "whole_s": statistics.median(wholes),
        "peak_mib": max(peaks),
    }


if __name__ == "__main__":
    main()
