"""Draw bench/plots/<gpu>/<operator>.png from the log: `python -m lite_llama.bench.plot`."""

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lite_llama.bench.record import DEFAULT_FOLDER, read

_PREFIX = "ops/"
# One colour an engine, in every plot.
_COLOURS = {"lite_llama": "C0", "torch": "C1", "torch.compile": "C2"}


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
    return [_draw_operator(name, lines.values(), folder) for name, lines in newest.items()]


def _draw_operator(name: str, lines: Iterable[dict[str, Any]], folder: Path) -> Path:
    import matplotlib as mpl

    mpl.use("Agg")
    import matplotlib.pyplot as plt

    lines = list(lines)
    cases = list(dict.fromkeys(f"{line['case']} {line['dtype']}" for line in lines))
    engines = list(dict.fromkeys(line["engine"] for line in lines))
    figure, axes = plt.subplots(figsize=(7, 1.2 + 0.22 * len(cases) * len(engines)))
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
    path = folder / f"{name}.png"
    figure.savefig(path, dpi=130, bbox_inches="tight")
    plt.close(figure)
    return path


if __name__ == "__main__":
    main(map(Path, sys.argv[1:]))
