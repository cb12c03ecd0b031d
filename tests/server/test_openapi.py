"""The server keeps to its own description."""

from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from lite_llama.llm import LLM
from lite_llama.server.config import ServeConfig
from tests.server.servers import LocalServer, wait_until

CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
]


@pytest.fixture(scope="module")
def brief_server() -> Iterator[LocalServer]:
    """A context of 64 tokens: a generated request that asks for no end soon comes to one."""
    with LLM(device="cpu", max_model_len=64, max_num_seqs=16, num_blocks=128) as llm:
        server = LocalServer(llm, ServeConfig())
        yield server
        wait_until(server.is_idle)
        server.stop()


TURN = {"role": "user", "content": "Hi"}
# What makes a request sound, whatever else it says.
SOUND: dict[str, dict[str, Any]] = {
    "/v1/chat/completions": {"messages": [TURN], "max_tokens": 2},
    "/v1/completions": {"prompt": "Hi", "max_tokens": 2},
    "/v1/messages": {"messages": [TURN], "max_tokens": 2},
    "/v1/responses": {"input": "Hi", "max_output_tokens": 2},
    "/tokenize": {"prompt": "Hi"},
    "/detokenize": {"tokens": [1, 2]},
}


def check_generated_requests(url: str, num_cases: int) -> None:
    """A1: requests that break the document, that keep to it, and sound ones with a random field.

    They are spread evenly over all operations with a body.
    """
    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    operations = [each.ok() for each in schema.get_all_operations()]
    posts = [each for each in operations if each.method == "post"]
    assert {each.path for each in posts} == set(SOUND)
    codes: Counter[tuple[str, int]] = Counter()
    share = -(-num_cases // (3 * len(posts)))
    for operation in operations:
        if operation in posts:
            _check(operation, GenerationMode.NEGATIVE, share, codes, {})
            _check(operation, GenerationMode.POSITIVE, share, codes, {})
            _check(operation, GenerationMode.POSITIVE, share, codes, SOUND[operation.path])
        else:
            _check(operation, GenerationMode.POSITIVE, 1, codes, {})
    print(sorted(codes.items()))
    assert codes.total() >= 0.9 * num_cases
    assert {path for path, code in codes if code == 200} == {each.path for each in operations}


def _check(
    operation: Any, mode: Any, num: int, codes: Counter[tuple[str, int]], sound: dict[str, Any]
) -> None:
    @settings(
        max_examples=num,
        deadline=None,
        derandomize=True,
        database=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(case=operation.as_strategy(generation_mode=mode))
    def run(case: Any) -> None:
        if sound:
            others = [item for item in case.body.items() if item[0] not in sound]
            case.body = {**sound, **dict(others[:1])}
        answer = case.call_and_validate(checks=CHECKS, timeout=60)
        codes[operation.path, answer.status_code] += 1

    run()


def test_generated_requests_are_answered_as_the_document_says(brief_server: LocalServer) -> None:
    """A1, 90 of its 5 000 cases."""
    check_generated_requests(brief_server.url, 90)


def test_the_document_has_every_route_of_the_server(server: LocalServer) -> None:
    described = httpx.get(f"{server.url}/openapi.json").json()["paths"]
    routes = server._server.config.app.routes  # type: ignore[union-attr]
    assert {path: next(iter(operations)).upper() for path, operations in described.items()} == {
        path: route.method for path, route in routes.items()
    }


def test_the_document_has_every_field_of_a_chat(server: LocalServer) -> None:
    schemas = httpx.get(f"{server.url}/openapi.json").json()["components"]["schemas"]
    chat = schemas["ChatRequest"]["properties"]
    assert {"messages", "tools", "response_format", "regex", "cache_salt"} <= set(chat)
    assert schemas["ChatMessage"]["required"] == ["role"]
