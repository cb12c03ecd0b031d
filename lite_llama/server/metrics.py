"""Prometheus metrics, with vLLM's names behind our prefix; gauges are read when scraped."""

import logging
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping
from itertools import accumulate
from typing import TYPE_CHECKING

from prometheus_client import CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.registry import Collector

if TYPE_CHECKING:
    from lite_llama.engine.request import FinishReason
    from lite_llama.server.wire import Figures

PREFIX = "lite_llama:"
_LONG_S = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0)
_SHORT_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5)

log = logging.getLogger("lite_llama.server")


class Metrics:
    """All metrics of one server, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry(auto_describe=True)
        self._children: dict[tuple[Counter, tuple[str, ...]], Counter] = {}
        self._prompt_tokens = self._counter("prompt_tokens", "Prompt tokens of served requests.")
        self._finished = self._counter(
            "request_success", "Sequences that ended, by reason.", ("finished_reason",)
        )
        self.shed = self._counter("requests_shed", "Requests refused because the queue was full.")
        self._http = self._counter(
            "http_requests", "Answers by route and status.", ("path", "code")
        )
        self._ttft = self._histogram("time_to_first_token_seconds", "Arrival to first token.")
        self.generated = self._counter("generation_tokens", "Tokens generated.")
        self.inter_token = self._histogram(
            "inter_token_latency_seconds", "Time between two tokens of a sequence.", _SHORT_S
        )
        self.end_to_end = self._histogram("e2e_request_latency_seconds", "Arrival to last token.")
        self.queue_time = self._histogram("request_queue_time_seconds", "Arrival to first step.")

    def watch(self, figures: "Callable[[], Figures]", is_ready: Callable[[], bool]) -> None:
        """Report the engine's own figures, as it told them last, at each scrape."""
        ready = Gauge(f"{PREFIX}ready", "1 if requests are accepted.", registry=self.registry)
        ready.set_function(lambda: float(is_ready()))
        self.registry.register(_EngineFigures(figures))

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self.registry)

    def first_token(self, waited_s: float, num_prompt_tokens: int) -> None:
        """A sequence has its first token."""
        self._ttft.observe(waited_s)
        self._prompt_tokens.inc(num_prompt_tokens)

    def finished(self, reason: "FinishReason") -> None:
        """A sequence has ended."""
        self._child(self._finished, reason).inc()

    def answered(self, path: str, status: int) -> None:
        """A request has its answer, or 499 if its client left."""
        self._child(self._http, path, str(status)).inc()

    def _child(self, counter: Counter, *labels: str) -> Counter:
        """What `counter.labels` gives, which takes four times as long to find it."""
        child = self._children.get((counter, labels))
        if child is None:
            child = self._children[counter, labels] = counter.labels(*labels)
        return child

    def log_error(self, what: str, error: BaseException) -> None:
        """Note a contained failure with its traceback, in the log only."""
        log.error("%s", what, exc_info=error)

    def _counter(self, name: str, text: str, labels: tuple[str, ...] = ()) -> Counter:
        return Counter(PREFIX + name, text, labels, registry=self.registry)

    def _histogram(self, name: str, text: str, bounds: tuple[float, ...] = _LONG_S) -> "Durations":
        histogram = Durations(PREFIX + name, text, bounds)
        self.registry.register(histogram)
        return histogram


class Durations(Collector):
    """A histogram of seconds that one thread writes, without a lock."""

    def __init__(self, name: str, text: str, bounds: tuple[float, ...]) -> None:
        self._name, self._text, self._bounds = name, text, bounds
        self._counts = [0] * (len(bounds) + 1)
        self._sum_s = 0.0

    def observe(self, duration_s: float, count: int = 1) -> None:
        """Count one, or several of the same."""
        self._counts[bisect_left(self._bounds, duration_s)] += count
        self._sum_s += duration_s * count

    def collect(self) -> Iterable[Metric]:
        """The histogram, as it is now."""
        names = [*(str(bound) for bound in self._bounds), "+Inf"]
        buckets = list(zip(names, accumulate(self._counts), strict=True))
        yield HistogramMetricFamily(self._name, self._text, buckets, self._sum_s)


class _EngineFigures(Collector):
    def __init__(self, figures: "Callable[[], Figures]") -> None:
        self._figures = figures

    def collect(self) -> Iterable[Metric]:
        figures = self._figures()
        gauges = {
            "num_requests_running": ("Sequences in the batch.", figures.num_running),
            "num_requests_waiting": ("Sequences that wait.", figures.num_waiting),
            "kv_cache_usage_perc": ("Share of KV blocks in use, 0 to 1.", figures.cache_usage),
        }
        counters = {
            "prefix_cache_queries": ("Tokens asked of it.", figures.num_queried_tokens),
            "prefix_cache_hits": ("Tokens it had.", figures.num_hit_tokens),
            "num_preemptions": ("Sequences put back for want of blocks.", figures.num_preemptions),
        }
        for name, (text, value) in gauges.items():
            yield GaugeMetricFamily(PREFIX + name, text, value)
        for name, (text, number) in counters.items():
            yield CounterMetricFamily(PREFIX + name, text, number)


class _Families(Collector):
    """Metrics that are read already."""

    def __init__(self, families: Iterable[Metric]) -> None:
        self._families = families

    def collect(self) -> Iterable[Metric]:
        return self._families


def merge_pages(pages: Mapping[str, str]) -> bytes:
    """One page of the metrics of several servers; the label `replica` names each one's samples."""
    families: dict[str, Metric] = {}
    for replica, page in sorted(pages.items()):
        for family in text_string_to_metric_families(page):
            empty = Metric(family.name, family.documentation, family.type)
            merged = families.setdefault(family.name, empty)
            for sample in family.samples:
                merged.add_sample(sample.name, {**sample.labels, "replica": replica}, sample.value)
    registry = CollectorRegistry()
    registry.register(_Families(families.values()))
    return generate_latest(registry)
