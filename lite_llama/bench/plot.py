"""Draw bench/plots/<gpu>/ from the log: `python -m lite_llama.bench.plot`.

One picture an operator with all its cases, one a series (rates over a growing size), and one of a
decode step of every model beside its floor.
"""

import re
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lite_llama.bench.record import DEFAULT_FOLDER, read

_PREFIX = "ops/"
# One colour an engine, in every plot.
_COLOURS = {"lite_llama": "C0", "torch": "C1", "torch.compile": "C2"}


# file name: (operator, cases whose name this matches with the size in its group, dtype, unit)
_SERIES = {
    "softmax_by_columns": ("softmax", r"4096x(\d+)", "bf16", "GB/s"),
    "rms_norm_by_columns": ("rms_norm", r"4096x(\d+)", "bf16", "GB/s"),
    "layer_norm_by_columns": ("layer_norm", r"4096x(\d+)", "bf16", "GB/s"),
    "linear_by_size": ("linear", r"(\d+)x\1x\1(?: \(\w+\))?", "bf16", "TFLOP/s"),
    "linear_fp8_by_size": ("linear", r"(\d+)x\1x\1 fp8.*", "float8_e4m3fn", "TFLOP/s"),
    "attention_b8_h64_d64": (
        "attention_prefill",
        r"b8 h64/64 d64 n(\d+) causal",
        "bf16",
        "TFLOP/s",
    ),
    "attention_b4_h32_d64": (
        "attention_prefill",
        r"b4 h32/32 d64 n(\d+) causal",
        "bf16",
        "TFLOP/s",
    ),
}


def main(logs: Iterable[Path] = ()) -> None:
    """Draw every given log, or all of bench/log."""
    for log in list(logs) or sorted(DEFAULT_FOLDER.glob("*.jsonl")):
        for path in draw(log, DEFAULT_FOLDER.parent / "plots" / log.stem):
            print(path)


def draw(log: Path, folder: Path) -> list[Path]:
    """One picture for each operator in `log`; the newest line of a case and engine counts."""
    newest: dict[str, dict[tuple[str, str, str], dict[str, Any]]] = {}
    for line in read(log):
        if line["bench"].startswith(_PREFIX):
            name = line["bench"].removeprefix(_PREFIX)
            key = (line["case"], line["dtype"], line["engine"])
            newest.setdefault(name, {})[key] = line
    folder.mkdir(parents=True, exist_ok=True)
    drawn = [_draw_operator(name, lines.values(), folder) for name, lines in newest.items()]
    for file, (name, pattern, dtype, unit) in _SERIES.items():
        points = _points(newest.get(name, {}).values(), pattern, dtype, unit)
        if points:
            title = f"{name}, {dtype}, {next(iter(newest[name].values()))['gpu']}"
            drawn.append(_draw_series(points, title, unit, folder / f"{file}.png"))
    steps = _single_steps(read(log))
    return [*drawn, _draw_latency(steps, folder / "latency.png")] if steps else drawn


def _figure(width: float, height: float) -> tuple[Any, Any]:
    """A figure of so many inches without a screen, and its axes."""
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    return plt.subplots(figsize=(width, height))


def _save(figure: Any, path: Path) -> Path:
    import matplotlib.pyplot as plt

    figure.savefig(path, dpi=130, bbox_inches="tight")
    plt.close(figure)
    return path


def _single_steps(lines: Iterable[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Our newest line of a step of one sequence by model and prompt, where the floor is known."""
    steps = {}
    for line in lines:
        match = re.fullmatch(r"(\S+) b1 p(\d+) g\d+", line["case"])
        ours = (line["bench"], line["engine"]) == ("latency", "lite_llama")
        if ours and match and "floor_us" in line:
            prompt = "" if match[2] == "128" else f", prompt {match[2]}"
            steps[f"{match[1]}{prompt}"] = line
    return dict(sorted(steps.items(), key=lambda step: float(step[1]["median_us"])))


def _draw_latency(steps: dict[str, dict[str, Any]], path: Path) -> Path:
    figure, axes = _figure(7, 1.0 + 0.4 * len(steps))
    medians = [line["median_us"] * 1e-3 for line in steps.values()]
    floors = [line["floor_us"] * 1e-3 for line in steps.values()]
    axes.barh(list(steps), medians, color=_COLOURS["lite_llama"], label="a step, end to end")
    axes.barh(
        list(steps),
        floors,
        height=0.3,
        color="C7",
        label="floor: weights, keys, values / bandwidth",
    )
    for y, (median, least) in enumerate(zip(medians, floors, strict=True)):
        axes.text(median, y, f" {median:.3g} ({least / median:.0%})", va="center", fontsize=8)
    axes.invert_yaxis()
    axes.margins(x=0.15)
    axes.set_xlabel("ms a token, one sequence")
    axes.set_title(next(iter(steps.values()))["gpu"])
    axes.legend(fontsize=8)
    return _save(figure, path)


def _points(
    lines: Iterable[dict[str, Any]], pattern: str, dtype: str, unit: str
) -> dict[str, list[tuple[int, float]]]:
    """Engine -> (size, rate) in order of size; empty unless there are three sizes or more."""
    points: dict[str, list[tuple[int, float]]] = {}
    for line in lines:
        match = re.fullmatch(pattern, line["case"])
        if match and line["dtype"] == dtype:
            work = line["bytes"] * 1e-9 if unit == "GB/s" else line["flops"] * 1e-12
            rate = work / (line["median_us"] * 1e-6)
            points.setdefault(line["engine"], []).append((int(match[1]), rate))
    sizes = {size for series in points.values() for size, _ in series}
    return {engine: sorted(series) for engine, series in points.items()} if len(sizes) > 2 else {}


def _draw_series(
    points: dict[str, list[tuple[int, float]]], title: str, unit: str, path: Path
) -> Path:
    figure, axes = _figure(6, 3.6)
    for engine, series in points.items():
        sizes, rates = zip(*series, strict=True)
        axes.plot(sizes, rates, marker="o", label=engine, color=_COLOURS.get(engine))
    axes.set_xscale("log", base=2)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("size")
    axes.set_ylabel(unit)
    axes.set_title(title)
    axes.legend(fontsize=8)
    return _save(figure, path)


def _draw_operator(name: str, lines: Iterable[dict[str, Any]], folder: Path) -> Path:
    lines = list(lines)
    cases = list(dict.fromkeys(f"{line['case']} {line['dtype']}" for line in lines))
    engines = list(dict.fromkeys(line["engine"] for line in lines))
    figure, axes = _figure(7, 1.2 + 0.22 * len(cases) * len(engines))
    height = 0.8 / len(engines)
    for i, engine in enumerate(engines):
        own = [line for line in lines if line["engine"] == engine]
        at = [cases.index(f"{line['case']} {line['dtype']}") + i * height for line in own]
        medians = [line["median_us"] for line in own]
        spread = [
            [line["median_us"] - line["p20_us"] for line in own],
            [line["p80_us"] - line["median_us"] for line in own],
        ]
        axes.barh(at, medians, height, xerr=spread, label=engine, color=_COLOURS.get(engine))
        for y, line in zip(at, own, strict=True):
            share = line.get("roof_fraction")
            label = f" {line['median_us']:.3g}" + (f" ({share:.0%})" if share else "")
            axes.text(line["p80_us"], y, label, va="center", fontsize=6)
    axes.set_yticks([i + 0.4 - height / 2 for i in range(len(cases))], cases, fontsize=7)
    axes.invert_yaxis()
    axes.set_xscale("log")
    axes.margins(x=0.15)
    axes.set_xlabel("µs a call, median with p20 and p80 (share of the measured roof)")
    axes.set_title(f"{name}, {lines[0]['gpu']}")
    axes.legend(fontsize=7)
    return _save(figure, folder / f"{name}.png")


if __name__ == "__main__":
    main(map(Path, sys.argv[1:]))
