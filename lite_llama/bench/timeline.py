"""What the GPU does over a few steady decode steps, and how long it does nothing.

`python -m lite_llama.bench.timeline` prints the idle share and draws
bench/plots/<gpu>/timeline.png: every kernel and copy of three steps. Under Nsight Systems the same
steps carry the stages' names as NVTX ranges.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

from lite_llama.bench.latency import build_engine
from lite_llama.engine.config import EngineConfig
from lite_llama.engine.engine import Engine
from lite_llama.engine.sampling_params import SamplingParams
from lite_llama.errors import ConfigError
from lite_llama.kernel_lib.gpu import slug

_WARM_STEPS, _STEPS, _DRAWN_STEPS = 20, 40, 3


@dataclass(frozen=True)
class Span:
    """One kernel or copy on the device, in microseconds."""

    name: str
    start: float
    end: float


def main() -> None:
    """Profile, print and draw."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="llama-3.2-1b")
    parser.add_argument("--prompt-len", type=int, default=128)
    parser.add_argument("--folder", type=Path, default=Path("bench/plots"))
    options = parser.parse_args()
    engine = build_engine(EngineConfig(prefix_caching=False), None, options.preset)
    spans = record(engine, options.prompt_len)
    gpu = slug(torch.cuda.get_device_name())
    print(f"{options.preset}: GPU idle {100 * idle_share(spans):.1f} % of {_STEPS} decode steps")
    print(summary(spans))
    draw(spans, options.folder / gpu / "timeline.png", f"{options.preset} on {gpu}")


def record(engine: Engine, prompt_len: int) -> list[Span]:
    """Spans of steady decode steps of one sequence, in order of their start."""
    engine.add("0", [7] * prompt_len, SamplingParams(temperature=0.0, ignore_eos=True))
    for _ in range(_WARM_STEPS):
        engine.step()
    torch.cuda.synchronize()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as profiler:
        for _ in range(_STEPS):
            engine.step()
        torch.cuda.synchronize()
    engine.abort("0")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    spans = [
        Span(event["name"], event["ts"], event["ts"] + event["dur"])
        for event in events
        if event.get("cat") in ("kernel", "gpu_memcpy", "gpu_memset")
    ]
    if not spans:
        raise ConfigError("the profiler saw no kernel; check that CUPTI works on this machine")
    return sorted(spans, key=lambda span: span.start)


def idle_share(spans: Sequence[Span]) -> float:
    """Share of the time between the first start and the last end in which nothing ran."""
    busy, covered = 0.0, spans[0].start
    for span in spans:
        busy += max(0.0, span.end - max(span.start, covered))
        covered = max(covered, span.end)
    return 1 - busy / (covered - spans[0].start)


def summary(spans: Sequence[Span]) -> str:
    """Per name: how often a step, and microseconds each (kernels overlap: they do not add up)."""
    names = sorted({span.name for span in spans})
    lines = []
    for name in names:
        times = sorted(span.end - span.start for span in spans if span.name == name)
        count = len(times) / _STEPS
        lines.append(f"{count:8.1f} a step  {times[len(times) // 2]:8.2f} us  {name[:90]}")
    return "\n".join(lines)


def draw(spans: Sequence[Span], path: Path, title: str) -> None:
    """A bar for each span, a row for each kind, over the last few steps."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    end = spans[-1].end
    begin = end - (end - spans[0].start) * _DRAWN_STEPS / _STEPS
    shown = [span for span in spans if span.start >= begin]
    names = list(dict.fromkeys(span.name for span in shown))
    figure, axes = plt.subplots(figsize=(14, 0.35 * len(names) + 1.2))
    for row, name in enumerate(names):
        bars = [(s.start - begin, s.end - s.start) for s in shown if s.name == name]
        axes.broken_barh(bars, (row - 0.4, 0.8))
    axes.set_yticks(range(len(names)), [name[:40] for name in names])
    axes.invert_yaxis()
    axes.set_xlabel("µs")
    axes.set_title(f"{title}: {_DRAWN_STEPS} decode steps, idle {100 * idle_share(spans):.1f} %")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110, bbox_inches="tight")
    plt.close(figure)


if __name__ == "__main__":
    main()
