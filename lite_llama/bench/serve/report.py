"""From samples to figures, a table and a plot."""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from lite_llama.bench.serve.load import Sample, Target, run
from lite_llama.bench.serve.workloads import Ask
from lite_llama.errors import ConfigError


@dataclass(frozen=True)
class Spread:
    """A distribution of times, in ms."""

    mean_ms: float
    median_ms: float
    p99_ms: float


@dataclass(frozen=True)
class Summary:
    """What a run has shown."""

    num_served: int
    errors: dict[str, int]
    duration_s: float
    requests_per_s: float
    prompt_tokens_per_s: float
    tokens_per_s: float
    spreads: dict[str, Spread]


def spread(times_s: Sequence[float]) -> Spread:
    """Mean, median and 99th percentile (nearest rank); zeros for no times."""
    if not times_s:
        return Spread(0.0, 0.0, 0.0)
    ordered = sorted(times_s)
    rank = min(len(ordered) - 1, -(-99 * len(ordered) // 100) - 1)
    values = (statistics.fmean(ordered), statistics.median(ordered), ordered[rank])
    return Spread(*(value * 1e3 for value in values))


def summarise(samples: Sequence[Sample], duration_s: float) -> Summary:
    """Figures over the served requests; failed ones are counted by their error."""
    served = [sample for sample in samples if sample.error is None]
    errors: dict[str, int] = {}
    for sample in samples:
        if sample.error is not None:
            errors[sample.error] = errors.get(sample.error, 0) + 1
    return Summary(
        num_served=len(served),
        errors=errors,
        duration_s=duration_s,
        requests_per_s=len(served) / duration_s,
        prompt_tokens_per_s=sum(sample.num_prompt_tokens for sample in served) / duration_s,
        tokens_per_s=sum(sample.num_tokens for sample in served) / duration_s,
        spreads={
            "TTFT": spread([sample.ttft_s for sample in served]),
            "TPOT": spread([sample.tpot_s for sample in served if sample.num_tokens > 1]),
            "ITL": spread([gap for sample in served for gap in sample.itl_s]),
            "E2E": spread([sample.e2e_s for sample in served]),
        },
    )


async def measure(target: Target, asks: Sequence[Ask]) -> tuple[list[Sample], Summary]:
    """Run a workload with a progress bar on stderr; ConfigError if nothing was served."""
    console = Console(stderr=True)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, transient=True) as bar:
        task = bar.add_task("requests", total=len(asks))
        tokens = 0

        def progress(sample: Sample) -> None:
            nonlocal tokens
            tokens += sample.num_tokens
            bar.update(task, advance=1, description=f"requests, {tokens} tokens")

        samples, duration_s = await run(target, asks, progress)
    summary = summarise(samples, duration_s)
    if not summary.num_served:
        raise ConfigError(f"{target.url} served nothing: {summary.errors}; check --url and --model")
    return samples, summary


def table(summary: Summary) -> Table:
    """The figures as a table for the terminal."""
    shown = Table(title=_headline(summary))
    for heading in ("ms", "mean", "median", "p99"):
        shown.add_column(heading, justify="left" if heading == "ms" else "right")
    for name, each in summary.spreads.items():
        shown.add_row(name, *(f"{v:.1f}" for v in (each.mean_ms, each.median_ms, each.p99_ms)))
    return shown


def _headline(summary: Summary) -> str:
    failed = f", failed: {summary.errors}" if summary.errors else ""
    return (
        f"{summary.num_served} requests in {summary.duration_s:.1f} s{failed}\n"
        f"{summary.requests_per_s:.2f} requests/s, {summary.prompt_tokens_per_s:.0f} prompt "
        f"tokens/s, {summary.tokens_per_s:.0f} tokens/s"
    )


def plot(samples: Sequence[Sample], path: Path) -> None:
    """Cumulative distributions of time to first token and of the time between tokens."""
    from matplotlib import pyplot

    served = [sample for sample in samples if sample.error is None]
    shown: dict[str, list[float]] = {
        "time to first token": [sample.ttft_s for sample in served],
        "time between tokens": [gap for sample in served for gap in sample.itl_s],
    }
    figure, axes = pyplot.subplots(1, len(shown), figsize=(9, 3.5), layout="constrained")
    for axis, (name, times) in zip(axes, shown.items(), strict=True):
        ordered: list[Any] = sorted(time * 1e3 for time in times)
        axis.plot(ordered, [(i + 1) / len(ordered) for i in range(len(ordered))])
        axis.set(xlabel=f"{name}, ms", ylabel="share of requests" if axis is axes[0] else "")
        axis.set_xlim(left=0)
        axis.grid(alpha=0.3)
    figure.savefig(path)
    pyplot.close(figure)
