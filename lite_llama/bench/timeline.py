"""Where a steady decode step's time goes, kernel by kernel of the decode chain.

`python -m lite_llama.bench.timeline [--preset P] [--batch N]` prints a table and draws
bench/plots/<gpu>/timeline.png. The programs of the chain's kernels take the time stamps themselves
(`kernel_lib.stamps`): of kernels that overlap, a profiler does not tell work from waiting, and on
some machines it sees no kernel at all. A kernel's time is from its release, when all of its
predecessor has ended, to the release of its successor; so the times of a step add up to the step.
Under Nsight Systems the engine's stages carry their names as NVTX ranges.
"""

import argparse
import importlib
import multiprocessing
import statistics
import sys
import time
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor

from lite_llama.bench.latency import build_engine
from lite_llama.engine.config import EngineConfig
from lite_llama.engine.engine import Engine
from lite_llama.engine.sampling_params import SamplingParams
from lite_llama.errors import ConfigError, LiteLlamaError
from lite_llama.kernel_lib.argmax_launch import choose_argmax
from lite_llama.kernel_lib.gemv_launch import MAX_TOKENS
from lite_llama.kernel_lib.gpu import GpuSpec, gpu_spec
from lite_llama.models import decode_chain
from lite_llama.models.chain_launches import (
    ChainLaunches,
    owns_pairs,
    settle_attention,
    weight_shapes,
)
from lite_llama.models.config import ModelConfig

# Every module whose kernels wait for the one before them, in a step whose tokens are greedy.
STAMPED_MODULES = (
    "lite_llama.kernel_lib.decode_gemv",
    "lite_llama.kernel_lib.decode_ring",
    "lite_llama.ops.attention_decode.kernel",
    "lite_llama.ops.norm_rope_write.kernel",
    "lite_llama.ops.advance_greedy.kernel",
)
BETWEEN = "between steps"
_WARM_STEPS, _STEPS, _DRAWN_LAYERS = 30, 100, 2


@dataclass(frozen=True)
class Site:
    """One kernel of a step: how many programs it is launched with, and bytes of its weight."""

    name: str
    layer: int
    programs: int
    num_bytes: int = 0


@dataclass(frozen=True)
class Kernel:
    """A launch, in microseconds: when its first and last program came to wait, its release."""

    programs: int
    first_waits: float
    last_waits: float
    release: float


def main() -> None:
    """Measure, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", default="llama-3.2-1b")
    parser.add_argument("--prompt-len", type=int, default=128)
    parser.add_argument("--batch", type=int, default=1, choices=range(1, MAX_TOKENS + 1))
    parser.add_argument("--folder", type=Path, default=Path("bench/plots"))
    options = parser.parse_args()
    try:
        run(options.preset, options.prompt_len, options.batch, options.folder)
    except LiteLlamaError as error:
        print(error, file=sys.stderr)
        sys.exit(1)


def run(preset: str, prompt_len: int, batch: int, folder: Path) -> None:
    """One measurement; ConfigError where the chain does not run or its stamps do not fit it."""
    if not torch.cuda.is_available() or not gpu_spec(torch.device("cuda")).has_pdl:
        raise ConfigError("no GPU with dependent launches, needed: compute capability 9.0 or newer")
    # A process of its own: kernels that have compiled without stamps keep none.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        plain = pool.submit(plain_step_us, preset, prompt_len, batch).result()
    sites, stamps, stamped = record(preset, prompt_len, batch)
    print(f"{preset}, {batch} x {prompt_len} tokens and more: {stamped:.1f} us a step")
    print(f"({plain:.1f} without stamps); {len(stamps)} stamps")
    steps = split_steps(group(stamps), sites)
    print(summary(steps, sites))
    gpu = gpu_spec(torch.device("cuda"))
    path = folder / gpu.slug / ("timeline.png" if batch == 1 else f"timeline_b{batch}.png")
    draw(steps, sites, path, f"{preset} on {gpu.name}, batch {batch}")
    print(path)


def plain_step_us(preset: str, prompt_len: int, batch: int) -> float:
    """Microseconds a step without stamps."""
    engine = build_engine(EngineConfig(prefix_caching=False), None, preset)
    return step_us(engine, prompt_len, batch)


def record(preset: str, prompt_len: int, batch: int) -> tuple[list[Site], Tensor, float]:
    """(what a step launches, the stamps of the last steps, microseconds a step with stamps)."""
    from lite_llama.kernel_lib import stamps

    modules = [importlib.import_module(name) for name in STAMPED_MODULES]
    buffer = stamps.take_stamps(modules, torch.device("cuda"))
    engine = build_engine(EngineConfig(prefix_caching=False), None, preset)
    decoder, graphs = engine.runner.decoder, engine.runner.graphs
    launches = decode_chain.engine_launches(decoder, batch)
    if launches is None or graphs is None:
        raise ConfigError(f"{preset} does not decode by the chain; choose dense weights")
    max_kv_len = graphs.table.values.shape[1] * engine.plan.block_size
    launches = settle_attention(
        launches, engine.model, (batch, decoder.dtype, max_kv_len), gpu_spec(engine.plan.device)
    )
    sites = chain_sites(engine.model, launches, decoder.dtype, batch, gpu_spec(engine.plan.device))
    each = step_us(engine, prompt_len, batch)
    return sites, stamps.read_stamps(buffer), each


def step_us(engine: Engine, prompt_len: int, batch: int) -> float:
    """Microseconds a steady decode step, as the host sees it."""
    params = SamplingParams(temperature=0.0, max_tokens=None, ignore_eos=True)
    for number in range(batch):
        engine.add(str(number), [7 + number] * prompt_len, params)
    for _ in range(_WARM_STEPS):
        engine.step()
    begin = time.perf_counter()
    for _ in range(_STEPS):
        engine.step()
    each = (time.perf_counter() - begin) / _STEPS
    for number in range(batch):
        engine.abort(str(number))
    torch.cuda.synchronize()
    return each * 1e6


def chain_sites(
    config: ModelConfig, launches: ChainLaunches, dtype: torch.dtype, batch: int, gpu: GpuSpec
) -> list[Site]:
    """What a greedy step of `batch` sequences launches that takes stamps, in order.

    `launches` with attention's spelled out. ConfigError if one of them is a plain launch.
    """
    shapes = weight_shapes(config)
    if launches.attention is None:
        raise AssertionError("attention's launch is not settled")

    def product(site: str, layer: int) -> Site:
        how = getattr(launches, site)
        if how.overlap < 0:
            raise ConfigError(f"{site} is a plain launch, which takes no stamp; tune it again")
        blocks, columns = shapes[site]
        rows = 2 * blocks if site in ("qkv", "gate_up") else blocks
        if not owns_pairs(config, site):
            blocks = rows
        # What adds a bias or a residual owns one set of rows in a ring, what rotates in any launch.
        is_ring = how.is_ring(columns, dtype, gpu)
        adds = site in ("o", "down") or (site == "qkv" and config.qkv_bias)
        if (site == "qkv" and owns_pairs(config, site)) or (is_ring and adds):
            groups = 1
        else:
            groups = how.ring_groups(columns) if is_ring else how.num_groups(blocks)
        programs = -(-blocks // (how.block_n * groups))
        return Site(site, layer, programs, rows * columns * dtype.itemsize)

    num_heads = batch * (config.num_q_heads + 2 * config.num_kv_heads)
    attention = batch * config.num_kv_heads * launches.attention.programs_per_head
    sites = []
    for layer in range(config.num_layers):
        sites.append(product("qkv", layer))
        if config.qk_norm:
            sites.append(Site("norm_rope_write", layer, num_heads))
        sites.append(Site("attention", layer, attention))
        sites += [product(name, layer) for name in ("o", "gate_up", "down")]
    last = config.num_layers
    draw = Site("draw", last, batch * choose_argmax(config.vocab_size).splits)
    return [*sites, product("head", last), draw, Site(BETWEEN, last, batch)]


def group(stamps: Tensor) -> list[Kernel]:
    """Launches, in order, of int64 stamps [n, 4] as `read_stamps` returns them.

    Every program of a kernel goes on before any of the next one does, so a launch ends where the
    number of programs changes or a program comes once more. Times count from the first stamp.
    """
    kernels: list[Kernel] = []
    waits: list[float] = []
    seen: set[int] = set()
    origin = programs = 0
    release = 0.0

    def end() -> None:
        if seen:
            kernels.append(Kernel(programs, min(waits), max(waits), release))

    for count, program, before, after in stamps.tolist():
        origin = origin or after
        if count != programs or program in seen:
            end()
            programs, waits, release = count, [], (after - origin) / 1e3
            seen.clear()
        seen.add(program)
        waits.append((before - origin) / 1e3)
    end()
    return kernels


def split_steps(kernels: Sequence[Kernel], sites: Sequence[Site]) -> list[list[Kernel]]:
    """Whole steps, each with the next one's first kernel at its end; ConfigError if none fit."""
    want = [site.programs for site in sites]
    found = [kernel.programs for kernel in kernels]
    length = len(want)
    # The first kernel may have lost programs.
    starts = range(1, min(length + 1, len(found) - length))
    first = next((i for i in starts if found[i : i + length] == want), None)
    if first is None:
        raise ConfigError(
            f"{len(found)} launches with stamps hold no step of {length}: programs "
            f"{found[1:13]}..., expected in some place {want[:12]}...; is the chain the engine's?"
        )
    for place, programs in enumerate(found[first:]):
        if programs != want[place % length]:
            raise ConfigError(
                f"step {place // length} launches {programs} programs in place {place % length}, "
                f"expected {want[place % length]} of {sites[place % length].name}; run it again"
            )
    steps = [
        list(kernels[start : start + length + 1])
        for start in range(first, len(kernels) - length, length)
    ]
    if len(steps) < 2:
        raise ConfigError(f"the stamps hold {len(steps)} whole steps, needed 2; use a small model")
    return steps


def durations(step: Sequence[Kernel]) -> list[float]:
    """Microseconds from each kernel's release to the next one's."""
    return [after.release - kernel.release for kernel, after in pairwise(step)]


def summary(steps: Sequence[Sequence[Kernel]], sites: Sequence[Site]) -> str:
    """A table of the sites, over all layers and steps, and how a step's time is shared out."""
    whole = statistics.median(sum(durations(step)) for step in steps)
    lines = [
        f"{'':16}{'a step':>7}{'programs':>9}{'us':>8}{'p20':>8}{'p80':>8}{'share':>8}{'GB/s':>7}"
        "   programs wait, us from the release on: first, last"
    ]
    for name in dict.fromkeys(site.name for site in sites):
        places = [i for i, site in enumerate(sites) if site.name == name]
        taken = [(step[i], durations(step)[i]) for step in steps for i in places]
        times = sorted(each for _, each in taken)
        median = statistics.median(times)
        site = sites[places[0]]
        first = statistics.median(kernel.first_waits - kernel.release for kernel, _ in taken)
        last = statistics.median(kernel.last_waits - kernel.release for kernel, _ in taken)
        share = sum(times) / len(steps) / whole
        rate = f"{site.num_bytes / median / 1e3:.0f}" if site.num_bytes else ""
        lines.append(
            f"{name:16}{len(places):7}{site.programs:9}{median:8.2f}{times[len(times) // 5]:8.2f}"
            f"{times[-1 - len(times) // 5]:8.2f}{share:8.1%}{rate:>7}   {first:+.2f} {last:+.2f}"
        )
    idle = [sum(durations(step)[-2:]) for step in steps]
    lines.append(
        f"{len(steps)} steps of {whole:.1f} us (median). From the head's end to the next step's "
        f"first kernel {statistics.median(idle):.1f} us ({min(idle):.1f} to {max(idle):.1f}), "
        f"{statistics.median(idle) / whole:.1%} of a step: the token is drawn and stored, the next "
        "step's inputs and embedding come"
    )
    return "\n".join(lines)


def draw(steps: Sequence[Sequence[Kernel]], sites: Sequence[Site], path: Path, title: str) -> None:
    """Layers in the middle of a step, and the boundary to the next step, as bars."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    middle = len(steps) // 2
    labelled = list(zip(sites, steps[middle - 1], strict=False))
    labelled += list(zip(sites, steps[middle], strict=False))
    a_layer = sum(site.layer == 0 for site in sites)
    begin = sites[-1].layer // 2 * a_layer
    end = len(sites) + a_layer
    windows = {
        f"{_DRAWN_LAYERS} layers": labelled[begin : begin + _DRAWN_LAYERS * a_layer + 1],
        "from one step to the next": labelled[len(sites) - 4 : end + 1],
    }
    figure, panels = plt.subplots(2, 1, figsize=(13, 6.5), layout="constrained")
    for panel, (name, window) in zip(panels, windows.items(), strict=True):
        _draw_window(panel, window)
        panel.set_title(name, fontsize=9)
    panels[-1].set_xlabel("µs; hollow: programs wait for the kernel before, full: it has ended")
    figure.suptitle(title)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)
    plt.close(figure)


def _draw_window(panel, window: Sequence[tuple[Site, Kernel]]) -> None:  # type: ignore[no-untyped-def]
    names = list(dict.fromkeys(site.name for site, _ in window))
    origin = window[0][1].release
    width = window[-1][1].release - origin
    for site, kernel in window:
        row, first = names.index(site.name), max(kernel.first_waits, origin) - origin
        waited = kernel.release - origin - first
        panel.barh(row, waited, left=first, fill=False, edgecolor="C0", linewidth=0.8)
    for (site, kernel), (_, after) in pairwise(window):
        row, begin = names.index(site.name), kernel.release - origin
        lasted = after.release - kernel.release
        panel.barh(row, lasted, left=begin, color="C7" if site.name == BETWEEN else "C0")
        if lasted > width / 40:
            where = {"ha": "center", "va": "center", "color": "w", "size": 8}
            panel.text(begin + lasted / 2, row, f"{lasted:.1f}", **where)
    panel.set_yticks(range(len(names)), names)
    panel.set_xlim(0, width)
    panel.invert_yaxis()


if __name__ == "__main__":
    main()
