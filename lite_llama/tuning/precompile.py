"""Kernels compiled side by side, in processes of their own, before their chains are timed.

A process builds one layer of the model and launches a step of each chain it is given: the kernels
land in Triton's cache on disk, under the very keys that the tuner's own process looks up. A chain
that fails there, whatever it does to that process, is refused here.
"""

import multiprocessing
import os
import signal
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing.pool import AsyncResult

import torch

from lite_llama.engine.config import EnginePlan, free_memory
from lite_llama.engine.runner import Runner
from lite_llama.errors import EngineError
from lite_llama.models.chain_launches import ChainLaunches
from lite_llama.models.config import ModelConfig
from lite_llama.models.loader import expected_shapes, random_decoder
from lite_llama.tuning.measure import attempt
from lite_llama.tuning.search import Rejected
from lite_llama.tuning.space import SITES, get

_MOST_WORKERS = 12
# A CUDA context, torch's libraries and the allocator's slack.
_PROCESS_BYTES = 1 << 30
_DEADLINE_S = 120.0


class Compiler:
    """A pool of compiling processes; `refused` maps a chain to why it does not run."""

    def __init__(self, config: ModelConfig, plan: EnginePlan) -> None:
        self.refused: dict[ChainLaunches, str] = {}
        self._seen: set[object] = set()
        layer = replace(config, num_layers=1)
        context = multiprocessing.get_context("spawn")
        workers = num_workers(layer, plan, os.cpu_count() or 1, free_memory(plan.device))
        self._pool = context.Pool(workers, _start, (layer, plan))

    def __enter__(self) -> "Compiler":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.terminate()

    def compile(self, num_seqs: int, chains: Sequence[ChainLaunches]) -> None:
        """Compile what these chains launch and no earlier chain did."""
        jobs: dict[ChainLaunches, AsyncResult[str]] = {}
        for chain in chains:
            values = {(num_seqs, site, get(chain, site)) for site in SITES if site != "carveout"}
            if not values <= self._seen:
                jobs[chain] = self._pool.apply_async(_compile, (num_seqs, chain))
                self._seen |= values
        deadline = time.monotonic() + _DEADLINE_S
        for chain, job in jobs.items():
            try:
                message = job.get(max(0.0, deadline - time.monotonic()))
            except multiprocessing.TimeoutError:
                message = f"did not compile within {_DEADLINE_S:.0f} s"
            if message:
                self.refused[chain] = message


def num_workers(config: ModelConfig, plan: EnginePlan, num_cores: int, free_bytes: int) -> int:
    """Processes that cores and free memory of the GPU allow, each with a model of `config`."""
    weights = sum(torch.Size(shape).numel() for shape in expected_shapes(config).values())
    each = weights * plan.precision.activations.itemsize + _PROCESS_BYTES
    return max(1, min(_MOST_WORKERS, num_cores - 1, int(free_bytes * 0.8) // each))


class _Worker:
    """What a process keeps between its jobs."""

    runner: Runner
    faulted = False


def _start(config: ModelConfig, plan: EnginePlan) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the tuner's process answers Ctrl-C
    # A compiler's diagnosis of a bad candidate runs to pages; the tuner tells its first line.
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())
    try:
        decoder = random_decoder(
            config, plan.precision, device=plan.device, num_positions=plan.max_model_len
        )
        _Worker.runner = Runner(decoder, plan, num_blocks=1)
    except (RuntimeError, OSError):  # out of memory, say: this process is of no use, no harm done
        _Worker.faulted = True


def _compile(num_seqs: int, chain: ChainLaunches) -> str:
    """Launch a step without tokens; why that failed, or "" (also from a process out of use)."""
    if _Worker.faulted or _Worker.runner.graphs is None:
        return ""
    graphs = _Worker.runner.graphs
    graphs.fields[2] = -1
    try:
        with torch.inference_mode():
            attempt(lambda: graphs.forward(num_seqs, chain))
    except Rejected as reason:
        return str(reason)
    except EngineError as fault:
        _Worker.faulted = True
        return str(fault)
    return ""
