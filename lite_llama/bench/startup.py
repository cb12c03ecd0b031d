"""From the launch of `lite-llama generate` to its first text: `python -m lite_llama.bench.startup`.

A process of its own each time, with the default model and the question of `make demo`; the answer
must be right. Peak memory is that process's largest resident set (the system counts at least its
parent's, which is smaller).

With `--preset`, a checkpoint of random weights in that shape is written and loaded, and what counts
is the first token of a prompt of 128: once with no kernel compiled before, then with all kept.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from lite_llama.bench import record
from lite_llama.checkpoint.default_model import find_default_model
from lite_llama.models.families import find_family
from lite_llama.models.loader import expected_shapes, part_shapes
from lite_llama.models.presets import find_preset

_ROUNDS = 5
_COMMAND = (
    sys.executable, "-m", "lite_llama.cli", "generate", "--temperature", "0",
    "What is the capital of France?",
)  # fmt: skip
_FIRST_TOKEN = """
import sys
from lite_llama import LLM, SamplingParams
params = SamplingParams(temperature=0, max_tokens=2, ignore_eos=True)
with LLM(sys.argv[1], max_model_len=2048) as llm:
    for chunk in llm.stream(list(range(3, 131)), params):
        print(f"token {chunk.token_ids[0]}", flush=True)
"""


def main(preset: str | None = None, log: Path = record.DEFAULT_FOLDER) -> None:
    """Measure, print, append to the log."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    run = record.describe_run(device)
    with tempfile.TemporaryDirectory() as folder:
        for line in _default_model() if preset is None else _preset(preset, Path(folder)):
            print(line, flush=True)
            record.append(run, [line], log)


def _default_model() -> Iterator[dict[str, Any]]:
    yield measure(_COMMAND, "Paris") | {"case": find_default_model().stem}


def _preset(preset: str, folder: Path) -> Iterator[dict[str, Any]]:
    write_checkpoint(preset, folder)
    yield from measure_first_token(preset, folder)


def write_checkpoint(preset: str, folder: Path) -> None:
    """A Hugging Face directory of random bfloat16 weights (normal, 0.02 wide; norms near 1)."""
    metadata = find_preset(preset)
    family = find_family("hf", metadata)
    config = family.read_hf_config(metadata)
    device = "cuda" if torch.cuda.is_available() else "cpu"  # a second, where a CPU takes twenty
    tensors = {}
    for name in expected_shapes(config):
        for source, shape in part_shapes(family, "hf", config, name):
            values = torch.randn(shape, device=device) * 0.02 + (1.0 if "norm" in name else 0.0)
            tensors[source] = values.bfloat16().cpu()
    save_file(tensors, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(dict(metadata)), encoding="utf-8")


def measure_first_token(case: str, checkpoint: Path) -> Iterator[dict[str, Any]]:
    """Log lines of a first token from this checkpoint: no kernel kept, then all of them."""
    with tempfile.TemporaryDirectory() as folder:

        def command(kernels: str) -> tuple[str, ...]:
            return (
                "env", "-u", "PYTHONDONTWRITEBYTECODE", f"PYTHONPYCACHEPREFIX={folder}/bytecode",
                f"TRITON_CACHE_DIR={folder}/{kernels}", sys.executable, "-c", _FIRST_TOKEN,
                str(checkpoint),
            )  # fmt: skip

        # Bytecode of all packages, as installers leave it: to compile torch's takes 2.5 s.
        measure(command("not measured"), "token", rounds=1)
        cold = measure(command("kernels"), "token", rounds=1)
        yield cold | {"case": f"{case}, no kernel compiled before"}
        yield measure(command("kernels"), "token") | {"case": f"{case}, kernels kept"}


def measure(command: tuple[str, ...], expected: str, rounds: int = _ROUNDS) -> dict[str, Any]:
    """A log line of a command that must print `expected`: first output, its end, peak memory."""
    firsts, wholes, peaks = [], [], []
    for _ in range(rounds):
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
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", help="random weights in the shape of a well-known model")
    main(parser.parse_args().preset)
