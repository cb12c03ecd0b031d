"""OpenTelemetry: a span for each request that asks for text. Never any of its text.

Names are those of the semantic conventions for generative AI; the two latencies, which those do not
have as attributes, are named as vLLM names them. OpenTelemetry is imported only here, and only if
traces are asked for.
"""

import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING

from lite_llama.errors import ConfigError
from lite_llama.server.service import Caller

if TYPE_CHECKING:
    from opentelemetry.sdk.trace.export import SpanExporter

# The routes that have spans, and gen_ai.operation.name of each.
OPERATIONS: Mapping[str, str] = {
    "/v1/chat/completions": "chat",
    "/v1/completions": "text_completion",
    "/v1/messages": "chat",
    "/v1/responses": "chat",
}
_FLUSH_S = 2.0

Attributes = dict[str, str | int | float | list[str]]


class Tracer:
    """Sends spans to an exporter, in a thread of its own.

    Spans are children of the request's `traceparent`, and are sampled as that says.
    """

    def __init__(self, exporter: "SpanExporter") -> None:
        from opentelemetry.sdk.resources import OTELResourceDetector, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
        from opentelemetry.trace import SpanKind, Status, StatusCode
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        # OTEL_SERVICE_NAME and OTEL_RESOURCE_ATTRIBUTES, which the SDK reads, go before ours.
        named = Resource({"service.name": "lite_llama"}).merge(OTELResourceDetector().detect())
        self._provider = TracerProvider(resource=named, shutdown_on_exit=False)
        self._provider.add_span_processor(BatchSpanProcessor(exporter))
        self._tracer = self._provider.get_tracer("lite_llama")
        self._propagator = TraceContextTextMapPropagator()
        self._kind = SpanKind.SERVER
        self._failed = Status(StatusCode.ERROR)

    def record(self, path: str, headers: Mapping[str, str], caller: Caller, status: int) -> None:
        """Note a request that has ended; `status` is the answer's, 499 if its client left."""
        ended_ns, took_s = time.time_ns(), time.monotonic() - caller.arrived
        operation = OPERATIONS[path]
        attributes = _attributes(operation, caller, took_s) | {"http.response.status_code": status}
        span = self._tracer.start_span(
            f"{operation} {attributes.get('gen_ai.request.model', '')}".strip(),
            self._propagator.extract(headers),
            self._kind,
            attributes,
            start_time=ended_ns - int(took_s * 1e9),
        )
        if status >= 500:
            span.set_attribute("error.type", str(status))
            span.set_status(self._failed)
        span.end(ended_ns)

    def close(self) -> None:
        """Send what is left, for two seconds at most: a collector may be gone."""
        sending = threading.Thread(target=self._provider.shutdown, daemon=True)
        sending.start()
        sending.join(_FLUSH_S)


def _attributes(operation: str, caller: Caller, took_s: float) -> Attributes:
    """What is known of a request; a refused one has neither model nor usage."""
    known: Attributes = {
        "gen_ai.operation.name": operation,
        "gen_ai.provider.name": "lite_llama",
        "gen_ai.latency.e2e": took_s,
    }
    if not caller.generations:
        return known
    job = caller.generations[0].job
    completions = [each for one in caller.generations for each in one.completions]
    first_tokens = [one.first_token_at for one in caller.generations if one.first_token_at]
    if first_tokens:
        known["gen_ai.latency.time_to_first_token"] = min(first_tokens) - caller.arrived
    if job.params.max_tokens is not None:
        known["gen_ai.request.max_tokens"] = job.params.max_tokens
    return known | {
        "gen_ai.request.model": job.model,
        "gen_ai.request.choice.count": job.params.n,
        "gen_ai.request.temperature": job.params.temperature,
        "gen_ai.request.top_p": job.params.top_p,
        "gen_ai.usage.input_tokens": sum(
            len(one.job.prompt_token_ids) for one in caller.generations
        ),
        "gen_ai.usage.output_tokens": sum(len(each.token_ids) for each in completions),
        "gen_ai.response.finish_reasons": [each.finish_reason or "abort" for each in completions],
    }


def open_tracer(endpoint: str | None) -> Tracer | None:
    """A tracer that sends to an OTLP endpoint over HTTP, or None without one.

    Raises ConfigError if the endpoint is no URL, or OpenTelemetry is not installed.
    """
    if endpoint is None:
        return None
    if not endpoint.startswith(("http://", "https://")):
        raise ConfigError(
            f"--otlp-traces-endpoint is {endpoint!r}, expected a URL such as "
            "http://127.0.0.1:4318/v1/traces"
        )
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

        return Tracer(OTLPSpanExporter(endpoint))
    except ImportError:
        raise ConfigError(
            "--otlp-traces-endpoint needs OpenTelemetry; pip install 'lite-llama[otel]'"
        ) from None
