"""What is aimed at on one H200, beside what the log says: a section of docs/performance.md."""

import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass

from lite_llama.bench.record import Line, case_of, overlaps

GPU = "NVIDIA H200"
# Milliseconds a step of Llama-3.2-1B by vLLM 0.26.0 (compiled, full CUDA graphs, FlashAttention 3)
# on such a GPU, by sequences; prompt 128, up to 416 keys.
_VLLM_MS = {16: 1.585, 32: 1.848, 64: 2.203, 128: 3.005, 256: 4.395}
_STREAMS = ("add", "swiglu", "rope", "rms_norm", "layer_norm", "softmax", "embedding", "kv_write")
# Those that move at least as much as 4096 x 4096.
_LARGE = (
    "add 4096x4096", "swiglu 4096x8192", "rope 512 tokens 4/4x4096", "rope 4096 tokens 32/8x128",
    *(f"{name} 4096x{n}" for name in ("rms_norm", "layer_norm") for n in (4096, 8192, 15872)),
    *(f"softmax 4096x{n}" for n in (4096, 8192, 12672)),
)  # fmt: skip

Figure = tuple[str, float]  # of a case


@dataclass(frozen=True)
class Target:
    """A limit that each figure should keep: at least it, or with `at_most` at most it.

    `form`: how a figure is written. `page`: where is told what was tried if one does not.
    """

    what: str
    limit: float
    figures: Callable[["Log"], Iterable[Figure]]
    form: str
    at_most: bool = False
    page: str = ""

    def meets(self, value: float) -> bool:
        """Whether a figure keeps the limit."""
        return value <= self.limit if self.at_most else value >= self.limit


class Log:
    """The newest lines of one GPU's log."""

    def __init__(self, lines: Sequence[Line]) -> None:
        self._steps = {
            case_of(line): line
            for line in lines
            if line["bench"] == "latency" and line["engine"] == "lite_llama"
        }
        self._starts = {line["case"]: line for line in lines if line["bench"] == "startup"}
        self._operators: dict[tuple[str, str], dict[str, Line]] = {}  # by case and dtype
        for line in lines:
            if line["bench"].startswith("ops/"):
                case = f"{line['bench'].removeprefix('ops/')} {case_of(line)}"
                engines = self._operators.setdefault((case, line["dtype"]), {})
                engines[line["engine"]] = line

    def step_ms(self, case: str) -> Iterator[Figure]:
        """Milliseconds a step."""
        if case in self._steps:
            yield case, self._steps[case]["median_us"] / 1e3

    def of_floor(self, *cases: str) -> Iterator[Figure]:
        """Times the least time a step can take."""
        for case in cases:
            if case in self._steps:
                yield case, self._steps[case]["median_us"] / self._steps[case]["floor_us"]

    def ratio(self, case: str, other: str) -> Iterator[Figure]:
        """A step's time, times another case's."""
        for (_, own), (_, base) in zip(self.step_ms(case), self.step_ms(other), strict=False):
            yield case, own / base

    def start_s(self, words: str) -> Iterator[Figure]:
        """Seconds from launch to the first text, of cases with these words."""
        for case, line in self._starts.items():
            if words in case:
                yield case, line["median_us"] / 1e6

    def of_roof(self, *starts: str) -> Iterator[Figure]:
        """Share of the measured roof of the operators' cases that start so."""
        for (case, _), engines in self._operators.items():
            ours = engines.get("lite_llama", {})
            if case.startswith(starts) and "roof_fraction" in ours:
                yield case, ours["roof_fraction"]

    def speed_up(self, pattern: str, *engines: str) -> Iterator[Figure]:
        """The best of these engines' times (of all others') over ours, of cases that match.

        A tie is 1.
        """
        for (case, _), timed in self._operators.items():
            ours = timed.get("lite_llama")
            others = [timed[name] for name in engines or timed if name in timed]
            others = [line for line in others if line is not ours]
            if re.match(pattern, case) and others and ours:
                best = min(others, key=lambda line: float(line["median_us"]))
                tie = overlaps(ours, best)
                yield case, 1.0 if tie else best["median_us"] / ours["median_us"]


def _one(name: str) -> str:
    return f"{name} b1 p128"


_1B = "llama-3.2-1b"
_CHAIN, _ATTENTION, _PREFILL, _ROWS, _LINEAR, _SAMPLE = (
    f"[{name}](lab/{name}.md)"
    for name in (
        "decode_chain", "attention_decode", "attention_prefill", "rows", "linear", "sample",
    )
)  # fmt: skip

TARGETS = (
    Target("Llama-3.2-1B, one sequence", 0.68, lambda log: log.step_ms(_one(_1B)), "{:.3f} ms",
           at_most=True),
    Target("Llama-3.1-8B, one sequence, of its floor", 1.15,
           lambda log: log.of_floor(_one("llama-3.1-8b")), "{:.3f}", at_most=True, page=_CHAIN),
    Target("Qwen2.5-1.5B, Qwen3-0.6B, InternLM2-1.8B, one sequence, of their floors", 1.3,
           lambda log: log.of_floor(*map(_one, ("qwen2.5-1.5b", "qwen3-0.6b", "internlm2-1.8b"))),
           "{:.2f}", at_most=True, page=_CHAIN),
    Target("Llama-3.2-1B, 2, 4 and 8 sequences, of one's time", 1.35,
           lambda log: (figure for size in (2, 4, 8)
                        for figure in log.ratio(f"{_1B} b{size} p128", _one(_1B))),
           "{:.2f}", at_most=True),
    Target("Llama-3.2-1B, 16 to 256 sequences, speed-up over vLLM 0.26.0", 1.0,
           lambda log: ((case, theirs / own) for size, theirs in _VLLM_MS.items()
                        for case, own in log.step_ms(f"{_1B} b{size} p128")), "{:.2f}"),
    Target("Llama-3.2-1B after 4096, 32768 and 131000 tokens, of its floor", 1.25,
           lambda log: log.of_floor(*(f"{_1B} b1 p{n}" for n in (4096, 32768, 131000))),
           "{:.3f}", at_most=True, page=_ATTENTION),
    Target("launch to first text, kernels kept", 5.0, lambda log: log.start_s("kept"), "{:.1f} s",
           at_most=True),
    Target("launch to first text, no kernel compiled", 20.0, lambda log: log.start_s("compiled"),
           "{:.1f} s", at_most=True),
    Target("operators that stream 4096 x 4096 and more, of the bandwidth's roof", 0.9,
           lambda log: log.of_roof(*_LARGE), "{:.0%}", page=_ROWS),
    Target("the same operators, every size, speed-up over the best of torch", 1.0,
           lambda log: log.speed_up(f"({'|'.join(_STREAMS)}) "), "{:.2f}", page=_ROWS),
    Target("argmax, topk, sample of 8 x 128256, speed-up over torch", 2.0,
           lambda log: log.speed_up("(argmax|topk|sample) 8x128256", "torch"), "{:.2f}",
           page=_SAMPLE),
    Target("rope of 512 x 4 x 4096, speed-up over eager torch", 4.0,
           lambda log: log.speed_up("rope 512 tokens 4/4x4096", "torch"), "{:.1f}"),
    Target("linear, one row of 64 MB and more, of the bandwidth's roof", 0.85,
           lambda log: log.of_roof("linear 1x128256x2048", "linear 1x16384x2048"), "{:.0%}",
           page=_LINEAR),
    Target("linear, 1 to 16 rows, speed-up over cuBLAS", 1.0,
           lambda log: log.speed_up(r"linear (1|2|4|8|16)x", "cublas"), "{:.2f}", page=_LINEAR),
    Target("linear, 64 rows and more, speed-up over cuBLAS", 0.95,
           lambda log: log.speed_up(r"linear (64|[1-9]\d\d+)x(?!.* fp8)", "cublas"), "{:.2f}",
           page=_LINEAR),
    Target("linear, fp8, speed-up over `torch._scaled_mm`", 0.9,
           lambda log: log.speed_up(r"linear .* fp8", "cublas"), "{:.2f}", page=_LINEAR),
    Target("attention_prefill, causal, 1k to 16k tokens, speed-up over the best of torch", 1.0,
           lambda log: log.speed_up(r"attention_prefill .* n(1024|2048|4096|8192|16384) causal"),
           "{:.2f}", page=_PREFILL),
    Target("attention_decode, 8192 keys and more, of the bandwidth's roof", 0.85,
           lambda log: ((case, share) for case, share in log.of_roof("attention_decode ")
                        if int(case.rpartition("kv")[2]) >= 8192), "{:.0%}", page=_ATTENTION),
)  # fmt: skip


def rows(lines: Sequence[Line]) -> list[tuple[str, ...]]:
    """(aim, limit, the figure furthest from it, how many keep it, why not) of every target."""
    log = Log(lines)
    found: list[tuple[str, ...]] = []
    for target in TARGETS:
        figures = list(target.figures(log))
        limit = f"{'≤' if target.at_most else '≥'} {target.form.format(target.limit)}"
        if not figures:
            found.append((target.what, limit, "no figure", "", ""))
            continue
        case, worst = (max if target.at_most else min)(figures, key=lambda figure: figure[1])
        met = sum(target.meets(value) for _, value in figures)
        found.append((
            target.what,
            limit,
            f"{target.form.format(worst)} ({case})",
            f"{met} of {len(figures)}",
            "" if met == len(figures) else target.page,
        ))  # fmt: skip
    return found
