"""Write docs/performance.md and the README's tables: `python -m lite_llama.bench.report`.

They come from bench/log; nothing in them is typed by hand. Of each case and engine the newest line
of the log counts.
"""

from collections.abc import Iterable, Sequence
from pathlib import Path

from lite_llama.bench import targets
from lite_llama.bench.record import DEFAULT_FOLDER, Line, case_of, overlaps, read

PAGE = Path("docs/performance.md")
README = Path("README.md")
BEGIN, END = "<!-- performance: begin -->", "<!-- performance: end -->"


def main() -> None:
    """Rewrite the page, and the README between its two marks."""
    logs = {path.stem: newest(read(path)) for path in sorted(DEFAULT_FOLDER.glob("*.jsonl"))}
    PAGE.write_text(page(logs))
    before, _, rest = README.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    tables = "\n\n".join(latency_table(lines) for lines in logs.values() if of(lines, "latency"))
    README.write_text(f"{before}{BEGIN}\n\n{tables}\n\n{END}{after}")


def newest(lines: Iterable[Line]) -> list[Line]:
    """The last line of each bench, case, dtype and engine, in the order of the first."""
    kept: dict[tuple[str, ...], Line] = {}
    for line in lines:
        kept[line["bench"], case_of(line), line.get("dtype", ""), line["engine"]] = line
    return list(kept.values())


def page(logs: dict[str, list[Line]]) -> str:
    """The whole of docs/performance.md."""
    parts = [
        "# Performance",
        "Written by `python -m lite_llama.bench.report` from `bench/log`; the lines there carry "
        "versions, commit and spread. Compare figures of one run only.",
    ]
    for slug, lines in logs.items():
        first = lines[0]
        parts.append(f"## {first['gpu']}")
        parts.append(f"torch {first['torch']}, Triton {first['triton'] or 'none'}.")
        if first["gpu"] == targets.GPU:
            head = ("aim", "limit", "furthest from it", "met", "what was tried")
            parts.append("### What is aimed at")
            parts.append(table(head, targets.rows(lines)))
        if of(lines, "latency"):
            parts.append("### Latency, end to end")
            parts.append(latency_table(lines))
        if of(lines, "ladder"):
            parts.append("### From plain torch to the tuned chain")
            parts.append(ladder_table(lines))
        if any(line["bench"].startswith("ops/") for line in lines):
            parts.append("### Operators")
            parts.append(operator_table(lines))
            parts.append(pictures(slug))
    return "\n\n".join(part for part in parts if part) + "\n"


def of(lines: Iterable[Line], bench: str) -> list[Line]:
    """The lines of one benchmark."""
    return [line for line in lines if line["bench"] == bench]


def latency_table(lines: Sequence[Line]) -> str:
    """Time to first token and a token, beside the other engines of the run."""
    rows = [
        (
            line["case"],
            line["engine"],
            f"{line['median_us'] / 1e3:.3f}",
            f"{line['tokens_per_s']:.1f}",
            f"{line['ttft_ms']:.1f}",
            f"{line['roof_fraction']:.0%}" if "roof_fraction" in line else "",
        )
        for line in sorted(of(lines, "latency"), key=_latency_order)
    ]
    head = ("case", "engine", "ms a step", "tokens/s", "first token, ms", "share of the floor")
    starts = [
        f"From launch to the first text of {line['case']}: {line['median_us'] / 1e6:.1f} s, "
        f"to the end {line['whole_s']:.1f} s, peak memory {line['peak_mib']:.0f} MiB."
        for line in of(lines, "startup")
    ]
    return "\n\n".join([f"On {lines[0]['gpu']}:", table(head, rows), *starts])


def _latency_order(line: Line) -> tuple[str, list[int], str, str]:
    model, *words = line["case"].split(" ")
    numbers = [int(word[1:]) for word in words if word[1:].isdecimal()]
    return model, numbers, line["case"], line["engine"]


def ladder_table(lines: Sequence[Line]) -> str:
    """Each rung of `bench latency --ablate` and how much faster it is than the one before."""
    rows = []
    for case in dict.fromkeys(line["case"] for line in of(lines, "ladder")):
        steps = sorted(
            (line for line in of(lines, "ladder") if line["case"] == case),
            key=lambda line: str(line["engine"]),
        )
        for line, above in zip(steps, [steps[0], *steps], strict=False):
            gain = above["median_us"] / line["median_us"]
            tie = " (tie)" if line is not above and overlaps(line, above) else ""
            share = f"{line['roof_fraction']:.0%}" if "roof_fraction" in line else ""
            row = (case, line["engine"], f"{line['median_us'] / 1e3:.3f}", share)
            rows.append((*row, f"{gain:.2f}{tie}"))
    head = ("case", "rung", "ms a step", "share of the floor", "speed-up over the rung before")
    return table(head, rows)


def operator_table(lines: Sequence[Line]) -> str:
    """Our time, its share of the measured roof, and how it compares with the best other."""
    cases: dict[tuple[str, str, str], list[Line]] = {}
    for line in lines:
        if line["bench"].startswith("ops/"):
            key = (line["bench"], case_of(line), line["dtype"])
            cases.setdefault(key, []).append(line)
    rows = []
    for (bench, case, dtype), measured in cases.items():
        ours = next((line for line in measured if line["engine"] == "lite_llama"), None)
        others = [line for line in measured if line["engine"] != "lite_llama"]
        if ours is None or not others:
            continue
        best = min(others, key=lambda line: line["median_us"])
        ratio = best["median_us"] / ours["median_us"]
        rows.append(
            (
                bench.removeprefix("ops/"),
                ours["case"] if "(" in ours["case"] else case,
                dtype,
                f"{ours['median_us']:.2f}",
                f"{ours['roof_fraction']:.0%}" if "roof_fraction" in ours else "",
                f"{best['median_us']:.2f} {best['engine']}",
                f"{ratio:.2f}{' (tie)' if overlaps(ours, best) else ''}",
            )
        )
    head = ("operator", "case", "dtype", "µs", "of the roof", "best other, µs", "speed-up")
    return table(head, rows)


def pictures(slug: str) -> str:
    """Every plot that has been drawn for a GPU."""
    plots = sorted((DEFAULT_FOLDER.parent / "plots" / slug).glob("*.png"))
    return "\n".join(f"![{plot.stem}](../{plot.as_posix()})" for plot in plots)


def table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


if __name__ == "__main__":
    main()
