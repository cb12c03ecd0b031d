"""The decode chain under random delays: `python -m tests.models.chain_stress [--replays 10000]`.

Each kernel of the chain is held up for a random time around its wait and after it has let its
successor start, so that kernels overlap in ever new ways. Tokens and logits must stay those of
plain launches, bit for bit. As a control, the same chain without its waits must fail.

Delays are put in place of the two functions that kernels import, before any kernel compiles; so a
mode and a model have a process of their own. They compile side by side and take turns on the GPU.
"""

import argparse
import fcntl
import importlib
import pkgutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from lite_llama import EngineConfig, kernel_lib, ops
from lite_llama.engine.config import resolve
from lite_llama.engine.cuda_graphs import DecodeGraphs
from lite_llama.engine.engine import Engine
from lite_llama.kernel_lib.gpu import gpu_spec
from lite_llama.models import decode_chain
from lite_llama.models.chain_launches import ChainLaunches, settle_attention, without_overlap
from lite_llama.models.loader import Precision, random_decoder
from tests.models.test_decode_chain import BASE

SIZES = (1, 2, 4, 8)
STEPS = 400  # of a sequence; then all of them begin anew, with other tokens
MAX_LEN = 512
LATER = 16  # each sequence of a batch begins so many steps after the one before
MODELS = {
    "small": replace(BASE, max_positions=MAX_LEN),
    "qk_norm": replace(BASE, max_positions=MAX_LEN, qk_norm=True, qkv_bias=True),
    "heads of 64": replace(
        BASE,
        vocab_size=4099,
        hidden_size=1024,
        intermediate_size=2816,
        num_layers=4,
        num_q_heads=16,
        num_kv_heads=4,
        head_dim=64,
        max_positions=MAX_LEN,
        rope=replace(BASE.rope, rotary_dim=64),
    ),
}
# All products of this one are rings: it decodes more sequences by the chain.
SIZES_OF = dict.fromkeys(MODELS, SIZES) | {"heads of 64": (*SIZES, 16)}
CONTROL_REPLAYS = 2 * STEPS  # the control shows what it has to at once
MODES = ("plain", "delayed", "unwaited")


@triton.jit
def _delay():
    """Hold each warp up for 0 to 4095 cycles (2 µs), by the clock's low bits and the place."""
    place = tl.program_id(0) * 97 + tl.program_id(1) * 89 + tl.program_id(2) * 83
    tl.inline_asm_elementwise(
        """{
        .reg .u64 begin, now;
        .reg .u32 hash;
        .reg .u64 wanted;
        .reg .pred early;
        mov.u64 begin, %clock64;
        cvt.u32.u64 hash, begin;
        add.u32 hash, hash, $1;
        mul.lo.u32 hash, hash, 0x9E3779B1;
        shr.u32 hash, hash, 20;
        cvt.u64.u32 wanted, hash;
        again:
        mov.u64 now, %clock64;
        sub.u64 now, now, begin;
        setp.lt.u64 early, now, wanted;
        @early bra again;
        mov.u32 $0, hash;
        }""",
        "=r,r",
        [place],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def _delayed_wait():
    _delay()
    gdc_wait()
    _delay()


@triton.jit
def _no_wait():
    _delay()


@triton.jit
def _delayed_launch():
    gdc_launch_dependents()
    _delay()


def kernel_modules() -> Iterator[ModuleType]:
    """Every module with kernels."""
    for package in (ops, kernel_lib):
        for found in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            yield importlib.import_module(found.name)


def replace_waits(mode: str) -> set[str]:
    """Put the mode's functions in place of those that kernels import; names of the modules."""
    wait = {"delayed": _delayed_wait, "unwaited": _no_wait}[mode]
    changed = set()
    for module in kernel_modules():
        for name, other in (("gdc_wait", wait), ("gdc_launch_dependents", _delayed_launch)):
            if hasattr(module, name):
                setattr(module, name, other)
                changed.add(module.__name__)
    return changed


def history(model: str, mode: str, replays: int, lock: Path) -> dict[int, Tensor]:
    """By batch size, tokens and checksums of the logits: int64 [replays, 2, size]."""
    if mode != "plain":
        replace_waits(mode)
    device = torch.device("cuda")
    config, sizes = MODELS[model], SIZES_OF[model]
    torch.manual_seed(0)
    decoder = random_decoder(
        config, Precision(torch.bfloat16, torch.bfloat16), device=device, num_positions=MAX_LEN
    )
    settings = EngineConfig(
        dtype="bfloat16", device="cuda", max_num_seqs=max(sizes), prefix_caching=False
    )
    plan = resolve(settings, config)
    engine = Engine(decoder, plan, max(sizes) * MAX_LEN // plan.block_size, frozenset())
    graphs = engine.runner.graphs
    assert graphs is not None
    found = {}
    for size in sizes:
        launches = decode_chain.engine_launches(decoder, size)
        assert launches is not None
        max_kv_len = graphs.table.values.shape[1] * plan.block_size
        launches = settle_attention(
            launches, config, (size, torch.bfloat16, max_kv_len), gpu_spec(device)
        )
        if mode == "plain":
            # Attention as in the chain, or it would sum in another order: behind a plain launch it
            # overlaps with nothing, and o does not with it.
            launches = replace(without_overlap(launches), attention_overlap=1.0)
        chain = Chain(engine, graphs, size, launches)
        with lock.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            found[size] = chain.run(replays)
    return found


class Chain:
    """A recorded step that feeds itself: tokens, positions and slots are advanced on the GPU."""

    def __init__(
        self, engine: Engine, graphs: DecodeGraphs, size: int, launches: ChainLaunches
    ) -> None:
        self._graphs = graphs
        self._caches = engine.runner.kv_cache.layers
        self._size = size
        self._vocab = engine.model.vocab_size
        device, block_size = graphs.fields.device, engine.plan.block_size
        blocks = MAX_LEN // block_size
        table = torch.randperm(size * blocks, generator=torch.Generator().manual_seed(1))
        graphs.table.values[:size, :blocks] = table.view(size, blocks).to(graphs.table.values)
        self._places = _places(size, table.view(size, blocks), block_size).to(device)
        self._step = torch.zeros(1, dtype=torch.int64, device=device)
        self._history = torch.zeros((STEPS, 2, size), dtype=torch.int64, device=device)
        self._told = torch.zeros_like(graphs.fields[:2])
        weights = torch.arange(self._vocab, device=device) * 2 + 1

        def step() -> None:
            graphs.fields[1:4, :size] = self._places.index_select(0, self._step)[0]
            logits = graphs._compute(size, launches)
            ops.advance_greedy(logits, graphs.fields, self._told)
            # Without waits what is drawn may be no token.
            tokens = graphs.fields[0, :size].remainder_(self._vocab)
            checksums = (logits.view(torch.int32) * weights).sum(1)
            line = torch.stack((tokens, checksums))[None]
            self._history.index_copy_(0, self._step, line)
            self._step.add_(1)

        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            step()
        torch.cuda.current_stream().wait_stream(stream)
        self._graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self._graph):
            step()

    def run(self, replays: int) -> Tensor:
        """int64 [replays, 2, size] on the CPU."""
        found = []
        for cycle, first in enumerate(range(0, replays, STEPS)):
            # What the last cycle left in the cache would be right once more.
            for cache in self._caches:
                cache.k.fill_(float("nan"))
                cache.v.fill_(float("nan"))
            self._step.zero_()
            tokens = torch.arange(self._size) * 13 + cycle * 7
            self._graphs.fields[0, : self._size] = (tokens % self._vocab).to(self._step.device)
            steps = min(STEPS, replays - first)
            for _ in range(steps):
                self._graph.replay()
            found.append(self._history[:steps].cpu())
        return torch.cat(found)


def _places(size: int, table: Tensor, block_size: int) -> Tensor:
    """Positions, slots and lengths of every step, int64 [STEPS, 3, size]."""
    positions = torch.arange(STEPS)[:, None] - LATER * torch.arange(size)
    begun = positions >= 0
    positions = positions.clamp_min(0)
    slots = table.T[positions // block_size, torch.arange(size)] * block_size
    slots = torch.where(begun, slots + positions % block_size, -1)
    return torch.stack((positions, slots, torch.where(begun, positions + 1, 0)), 1)


def differences(replays: int) -> dict[str, dict[str, float]]:
    """{model: {mode: share of replays that differ from plain launches'}}, worst batch size."""
    with tempfile.TemporaryDirectory() as folder:

        def child(pair: tuple[str, str]) -> dict[int, Tensor]:
            output = Path(folder) / "-".join(pair)
            count = min(replays, CONTROL_REPLAYS) if pair[1] == "unwaited" else replays
            command = [sys.executable, "-m", "tests.models.chain_stress", "--child", *pair]
            command += [str(output), "--replays", str(count)]
            subprocess.run(command, check=True, timeout=500)
            loaded: dict[int, Tensor] = torch.load(output, weights_only=True)
            return loaded

        pairs = [(model, mode) for model in MODELS for mode in MODES]
        with ThreadPoolExecutor(len(pairs)) as pool:
            found = dict(zip(pairs, pool.map(child, pairs), strict=True))
    return {
        model: {
            mode: max(
                _share(found[model, mode][size], found[model, "plain"][size])
                for size in SIZES_OF[model]
            )
            for mode in MODES[1:]
        }
        for model in MODELS
    }


def _share(got: Tensor, want: Tensor) -> float:
    return float((got != want[: len(got)]).flatten(1).any(1).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--replays", type=int, default=10000, help="of each batch size")
    parser.add_argument("--child", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        model, mode, output = options.child
        with torch.inference_mode():
            found = history(model, mode, options.replays, Path(output).with_name("lock"))
        torch.save(found, output)
        return
    passed = True
    for model, shares in differences(options.replays).items():
        as_wanted = shares["delayed"] == 0.0 < shares["unwaited"]
        passed &= as_wanted
        print(
            f"{model:12} {options.replays} replays of {SIZES_OF[model]} sequences, differing: "
            f"{shares['delayed']:.2%} with delays, {shares['unwaited']:.2%} without waits: "
            f"{'ok' if as_wanted else 'FAILED'}"
        )
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
