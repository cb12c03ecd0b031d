"""OpenTelemetry spans, read back from the SDK's own exporter and from a collector on loopback."""

import http.server
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from lite_llama.llm import LLM
from lite_llama.server.config import ServeConfig
from lite_llama.server.tracing import OPERATIONS, Tracer
from tests.server.servers import MODEL, LocalServer, server_process, wait_until

sdk = pytest.importorskip("opentelemetry.sdk.trace.export", reason="needs the extra otel")
in_memory = pytest.importorskip("opentelemetry.sdk.trace.export.in_memory_span_exporter")
otlp = pytest.importorskip(
    "opentelemetry.proto.collector.trace.v1.trace_service_pb2", reason="needs the extra otel"
)

TRACE, PARENT = "0af7651916cd43dd8448eb211c80319c", "b7ad6b7169203331"
CANARY = "canary5172"


class Traced:
    """A server in this process, and the spans it has ended."""

    def __init__(self, llm: LLM) -> None:
        self.exporter = in_memory.InMemorySpanExporter()
        self.tracer = Tracer(self.exporter)
        self.server = LocalServer(llm, ServeConfig(), self.tracer)

    def flush(self) -> None:
        self.tracer._provider.force_flush()

    def span(self) -> Any:
        """The one span since the last call; the response may be read before the span is noted."""

        def is_there() -> bool:
            self.flush()
            return bool(self.exporter.get_finished_spans())

        wait_until(is_there)
        [span] = self.exporter.get_finished_spans()
        self.exporter.clear()
        return span


@pytest.fixture(scope="module")
def traced() -> Iterator[Traced]:
    with LLM(device="cpu", max_model_len=1024, max_num_seqs=16, num_blocks=256) as llm:
        traced = Traced(llm)
        yield traced
        traced.server.stop()
        traced.tracer.close()


def test_a_chat_has_a_span_with_model_usage_and_latencies(traced: Traced) -> None:
    before_ns = time.time_ns()
    answer = traced.server.chat(
        f"Say {CANARY}", max_tokens=5, ignore_eos=True, temperature=0.5, top_p=0.9, n=2
    )
    span, usage = traced.span(), answer.json()["usage"]
    assert span.name == f"chat {MODEL}"
    assert span.kind.name == "SERVER"
    assert span.parent is None
    assert before_ns <= span.start_time < span.end_time <= time.time_ns()
    took_s = (span.end_time - span.start_time) / 1e9
    attributes = dict(span.attributes)
    assert attributes.pop("gen_ai.latency.e2e") == pytest.approx(took_s, abs=1e-4)
    assert 0 < attributes.pop("gen_ai.latency.time_to_first_token") < took_s
    assert attributes == {
        "gen_ai.operation.name": "chat",
        "gen_ai.provider.name": "lite_llama",
        "gen_ai.request.model": MODEL,
        "gen_ai.request.max_tokens": 5,
        "gen_ai.request.temperature": 0.5,
        "gen_ai.request.top_p": 0.9,
        "gen_ai.request.choice.count": 2,
        "gen_ai.usage.input_tokens": usage["prompt_tokens"],
        "gen_ai.usage.output_tokens": 10,
        "gen_ai.response.finish_reasons": ("length", "length"),
        "http.response.status_code": 200,
    }
    assert CANARY not in span.to_json()
    assert span.resource.attributes["service.name"] == "lite_llama"


def test_a_span_is_the_child_of_the_requests_traceparent(traced: Traced) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-01"}
    body = {"prompt": ["One", "Two"], "max_tokens": 3, "stream": True, "ignore_eos": True}
    assert traced.server.post("/v1/completions", body, headers=headers).status_code == 200
    span = traced.span()
    assert format(span.context.trace_id, "032x") == TRACE
    assert format(span.parent.span_id, "016x") == PARENT
    assert span.name == f"text_completion {MODEL}"
    assert span.attributes["gen_ai.usage.output_tokens"] == 6


@pytest.mark.parametrize("header", ["", "00-zz", "\u00ff" * 55, f"00-{'0' * 32}-{PARENT}-01"])
def test_a_broken_traceparent_begins_a_new_trace(traced: Traced, header: str) -> None:
    headers = {"traceparent": header.encode("latin-1")}
    body = {"prompt": "Hi", "max_tokens": 1}
    assert traced.server.post("/v1/completions", body, headers=headers).status_code == 200
    assert traced.span().parent is None


def test_a_caller_that_does_not_sample_is_not_sampled(traced: Traced) -> None:
    headers = {"traceparent": f"00-{TRACE}-{PARENT}-00"}
    body = {"prompt": "Hi", "max_tokens": 1}
    traced.server.post("/v1/completions", body, headers=headers)
    traced.server.post("/v1/completions", body)
    assert traced.span().parent is None  # the only one


@pytest.mark.parametrize("path", OPERATIONS)
def test_a_refused_request_has_a_span_with_its_status(traced: Traced, path: str) -> None:
    assert traced.server.post(path, {"temperature": CANARY}).status_code == 400
    span = traced.span()
    assert span.attributes["http.response.status_code"] == 400
    assert "gen_ai.request.model" not in span.attributes
    assert span.status.status_code.name == "UNSET"
    assert CANARY not in span.to_json()


def test_a_deadline_is_an_error(traced: Traced) -> None:
    traced.server.chat("Hi", timeout=0.2, max_tokens=900, ignore_eos=True)
    span = traced.span()
    assert span.status.status_code.name == "ERROR"
    assert span.attributes["error.type"] == "504"
    assert span.attributes["gen_ai.response.finish_reasons"] == ("abort",)


def test_what_asks_for_no_text_has_no_span(traced: Traced) -> None:
    for path in ("/health", "/metrics", "/v1/models"):
        assert httpx.get(traced.server.url + path).status_code == 200
    traced.flush()
    assert traced.exporter.get_finished_spans() == ()


class Collector(http.server.BaseHTTPRequestHandler):
    """Takes OTLP over HTTP."""

    spans: list[Any] = []  # noqa: RUF012 - one collector in this file

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.headers.get("content-encoding") == "gzip":
            raise AssertionError("not asked for")
        request = otlp.ExportTraceServiceRequest.FromString(body)
        for resource in request.resource_spans:
            for scope in resource.scope_spans:
                self.spans.extend(scope.spans)
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


def test_a_server_sends_its_spans_to_the_endpoint(tmp_path: Path) -> None:
    collector = http.server.HTTPServer(("127.0.0.1", 0), Collector)
    threading.Thread(target=collector.serve_forever, daemon=True).start()
    endpoint = f"http://127.0.0.1:{collector.server_port}/v1/traces"
    flags = ("--otlp-traces-endpoint", endpoint, "--max-model-len", "256")
    with server_process(tmp_path, *flags) as server:
        body = {"prompt": "Hi", "max_tokens": 2}
        assert httpx.post(f"{server.url}/v1/completions", json=body, timeout=30).status_code == 200
        server.process.terminate()
        assert server.process.wait(20) == 0
    [span] = Collector.spans
    assert span.name == f"text_completion {MODEL}"
    collector.shutdown()
    collector.server_close()


def test_a_collector_that_is_gone_does_not_hold_up_the_exit(tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))
        endpoint = f"http://127.0.0.1:{nobody.getsockname()[1]}/v1/traces"
        flags = ("--otlp-traces-endpoint", endpoint, "--max-model-len", "256")
        with server_process(tmp_path, *flags) as server:
            body = {"prompt": "Hi", "max_tokens": 2}
            assert httpx.post(f"{server.url}/v1/completions", json=body, timeout=30).is_success
            server.process.terminate()
            begun = time.monotonic()
            assert server.process.wait(20) == 0
            assert time.monotonic() - begun < 8


def run_serve(script: str, *flags: str) -> "subprocess.CompletedProcess[str]":
    code = f"import sys\n{script}\nfrom lite_llama import cli\ncli.main()"
    command = [sys.executable, "-c", code, "serve", *flags]
    return subprocess.run(command, capture_output=True, text=True, timeout=60)


def test_without_the_extra_the_flag_is_refused_in_one_line() -> None:
    script = "sys.modules['opentelemetry.exporter'] = None"
    done = run_serve(script, "--otlp-traces-endpoint", "http://127.0.0.1:4318/v1/traces")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1] == (
        "lite-llama: --otlp-traces-endpoint needs OpenTelemetry; pip install 'lite-llama[otel]'"
    )
    assert "Traceback" not in done.stderr


def test_an_endpoint_that_is_no_url_is_refused() -> None:
    done = run_serve("", "--otlp-traces-endpoint", "127.0.0.1:4318")
    assert done.returncode == 2
    assert "'127.0.0.1:4318', expected a URL such as" in done.stderr


def test_without_the_flag_nothing_of_opentelemetry_is_imported() -> None:
    code = (
        "import sys, lite_llama.server.run\n"
        "print([name for name in sys.modules if name.startswith(('opentelemetry', 'ray'))])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "[]\n", done.stderr
