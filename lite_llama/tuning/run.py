"""`lite-llama tune`: build the engine, search each batch size, write the table."""

import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lite_llama.bench import record
from lite_llama.bench.latency import build_engine
from lite_llama.checkpoint.default_model import find_default_model
from lite_llama.checkpoint.reader import open_checkpoint
from lite_llama.engine.config import EngineConfig
from lite_llama.engine.engine import Engine
from lite_llama.errors import ConfigError
from lite_llama.kernel_lib import tuned
from lite_llama.kernel_lib.gpu import gpu_spec
from lite_llama.models import decode_chain
from lite_llama.models.chain_launches import (
    ChainLaunches,
    choose_launches,
    dtype_name,
    settle_attention,
    tuned_shape,
    without_overlap,
)
from lite_llama.models.loader import read_config
from lite_llama.models.presets import preset_config
from lite_llama.tuning import report
from lite_llama.tuning.measure import ChainMeter
from lite_llama.tuning.precompile import Compiler
from lite_llama.tuning.search import Search, State, Timing
from lite_llama.tuning.space import SITES, Space

# Attention is timed at the asked context and at these multiples, where cache and model hold them.
_CONTEXTS = (1, 8, 64)
# Cached keys and values are few; the compiling processes need the memory.
_CACHE_SHARE = 0.25


@dataclass(frozen=True)
class Request:
    """What to search: checked flags."""

    batches: Sequence[int]
    sites: Sequence[str] = SITES
    context: int = 256
    exhaustive: bool = False
    output: Path | None = None

    def __post_init__(self) -> None:
        for size in self.batches:
            if size not in tuned.BATCHES:
                raise ConfigError(f"--batch has {size}, expected some of {tuned.BATCHES}")
        for site in self.sites:
            if site not in SITES:
                raise ConfigError(
                    f"--site has {site!r}, expected all or some of {', '.join(SITES)}"
                )
        if self.context < 1:
            raise ConfigError(f"--context is {self.context}, limit 1; raise it")


def main(model: str | None, preset: str | None, dtype: str, request: Request) -> None:
    """Tune the chain of a model, or of random weights in a preset's shape, on the present GPU."""
    if not torch.cuda.is_available():
        raise ConfigError(
            "tune measures on a GPU, and torch sees none; run it on a machine with one"
        )
    if preset is not None:
        config = preset_config(preset)
    else:
        config = read_config(open_checkpoint(find_default_model() if model is None else model))
    settings = EngineConfig(
        device="cuda",
        dtype=dtype,  # type: ignore[arg-type]
        # The cache need not hold longer sequences than are timed.
        max_model_len=min(config.max_positions, max(_CONTEXTS) * request.context),
        max_num_seqs=max(tuned.BATCHES),
        prefix_caching=False,
        gpu_memory_utilization=_CACHE_SHARE,
    )
    engine = build_engine(settings, model, preset)
    output = request.output or tuned.user_folder() / f"{gpu_spec(engine.plan.device).slug}.json"
    # Where nobody watches, tables keep their width.
    console = Console(width=None if sys.stdout.isatty() else 160)
    tune(engine, request, output, console)


def tune(engine: Engine, request: Request, output: Path, console: Console) -> None:
    """Search each batch size with this engine, which must not be in use, and write the table."""
    if not decode_chain.fits(engine.runner.decoder, max(request.batches)):
        raise ConfigError(
            f"the chain does not serve {max(request.batches)} sequences of this model: it takes "
            "dense weights of one dtype, and more than 8 sequences of small models only; try "
            "--dtype bfloat16 or a smaller --batch"
        )
    with Compiler(engine.model, engine.plan) as compiler:
        for size in request.batches:
            begin = time.perf_counter()
            _tune_batch(engine, size, request, output, (compiler, console))
            console.print(f"batch {size}: {time.perf_counter() - begin:.0f} s, written to {output}")


def _tune_batch(
    engine: Engine,
    size: int,
    request: Request,
    output: Path,
    helpers: tuple[Compiler, Console],
) -> None:
    compiler, console = helpers
    dtype, gpu = engine.plan.precision.activations, gpu_spec(engine.plan.device)
    contexts = _contexts(engine, size, request.context)
    problem = (size, dtype, engine.plan.max_blocks_per_seq * engine.plan.block_size)
    start = settle_attention(choose_launches(engine.model, size, dtype), engine.model, problem, gpu)
    key = {
        "shape": tuned_shape(engine.model),
        "dtype": dtype_name(dtype),
        "batch": size,
        "kernels": tuned.kernel_version(tuned.PRODUCTS),
        "attention_kernel": tuned.kernel_version(tuned.ATTENTION),
    }
    progress = report.progress_path(output)
    search_key = {
        **key, "gpu": gpu.name, "contexts": contexts, "sites": list(request.sites),
        "exhaustive": request.exhaustive,
    }  # fmt: skip
    state = report.read_progress(progress, search_key) or State(start)
    if state.done:
        console.print(f"going on after {', '.join(state.done)}: {progress}")
    meter = ChainMeter(engine, size, contexts, compiler.refused)
    meter.calibrate(start)
    space = Space(engine.model, size, dtype, gpu)

    def save(state: State) -> None:
        report.write_progress(progress, search_key, state)
        console.print(report.stage_line(size, state))

    with _progress(console) as bar:
        task = bar.add_task(f"batch {size}", total=None, stage="")
        Search(
            space,
            meter,
            state,
            prepare=partial(compiler.compile, size),
            save=save,
            tick=lambda stage: bar.update(task, advance=1, stage=stage),
        ).run(request.sites, exhaustive=request.exhaustive)
    comparisons = _compare(meter, state.best, start)
    for stage in state.done:
        own = [trial for trial in state.trials if trial.stage == stage]
        console.print(report.top_table(f"batch {size}, {stage}", own, state.best))
    console.print(report.best_table(SITES, state.best, comparisons))
    entry = {
        **key,
        "sites": asdict(state.best),
        "measured": _conditions(engine, contexts) | report.measured(comparisons),
    }
    report.write_entry(output, gpu.name, entry)
    progress.unlink(missing_ok=True)


def _compare(meter: ChainMeter, best: ChainLaunches, start: ChainLaunches) -> dict[str, Timing]:
    """The tuned chain beside itself (the noise), the defaults, and both without overlap."""
    return {
        "tuned": meter(best, best, longer=True),
        "defaults": meter(start, best, longer=True),
        "tuned tiles, plain launches": meter(without_overlap(best), best, longer=True),
        "default tiles, plain launches": meter(without_overlap(start), best, longer=True),
    }


def _contexts(engine: Engine, size: int, context: int) -> list[int]:
    """Keys a sequence at which to time, those that the cache and the model hold."""
    blocks = engine.scheduler.pool.num_blocks // size
    limit = min(engine.plan.max_model_len, blocks * engine.plan.block_size)
    if context > limit:
        raise ConfigError(f"--context is {context}, limit {limit} at batch {size}; lower it")
    return [context * factor for factor in _CONTEXTS if context * factor <= limit]


def _conditions(engine: Engine, contexts: list[int]) -> dict[str, Any]:
    run = record.describe_run(engine.plan.device)
    return {
        "contexts": contexts, "torch": run.torch, "triton": run.triton, "driver": run.driver,
        "commit": run.commit,
    }  # fmt: skip


def _progress(console: Console) -> Progress:
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("chains, {task.fields[stage]}"),
        TimeElapsedColumn(),
    )
    return Progress(*columns, console=console, transient=True, disable=not console.is_terminal)
