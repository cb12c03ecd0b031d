"""The server's own description: /openapi.json, an OpenAPI 3.1 document.

Bodies of requests are derived from the structs that read them; what an answer has at least is
written here. Bounds on values are not repeated: a 400 names the field, its value and its limit.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import msgspec

from lite_llama.server.messages import MessagesRequest
from lite_llama.server.protocol import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
)
from lite_llama.server.responses import ResponsesRequest

_REF = "#/components/schemas/{name}"
_TEXT, _COUNT, _LIST = {"type": "string"}, {"type": "integer", "minimum": 0}, {"type": "array"}


def _object(**properties: Any) -> dict[str, Any]:
    """An object with at least these properties."""
    return {"type": "object", "required": list(properties), "properties": properties}


# What stands for a stream is the schema of each of its events, as in OpenAI's own document.
_EVENT = _object(data=_TEXT)


def _list(items: Mapping[str, Any]) -> dict[str, Any]:
    return {**_LIST, "items": items}


def _nullable(kind: str) -> dict[str, Any]:
    return {"type": [kind, "null"]}


def _choice(**further: Any) -> dict[str, Any]:
    return _object(
        index=_COUNT, finish_reason={"enum": ["stop", "length", "tool_calls", None]}, **further
    )


_USAGE = _object(prompt_tokens=_COUNT, completion_tokens=_COUNT, total_tokens=_COUNT)
_MESSAGE = _object(role={"const": "assistant"}, content=_nullable("string"))
_ERROR = _object(
    error=_object(message=_TEXT, type=_TEXT, param=_nullable("string"), code=_nullable("string"))
)


@dataclass(frozen=True)
class _Operation:
    """What one route takes and gives."""

    summary: str
    answer: Mapping[str, Any]
    request: type[msgspec.Struct] | None = None
    media_type: str = "application/json"
    streams: bool = False


_OPERATIONS: dict[str, _Operation] = {
    "/": _Operation("The chat page", _TEXT, media_type="text/html"),
    "/health": _Operation("Whether the process lives", _object(status={"const": "alive"})),
    "/ready": _Operation("Whether requests are accepted", _object(status={"const": "ready"})),
    "/metrics": _Operation("Prometheus metrics", _TEXT, media_type="text/plain"),
    "/openapi.json": _Operation("This document", _object(openapi=_TEXT, paths={"type": "object"})),
    "/tokenize": _Operation(
        "Text or conversation to token ids",
        _object(count=_COUNT, max_model_len=_COUNT, tokens=_list(_COUNT)),
        TokenizeRequest,
    ),
    "/detokenize": _Operation("Token ids to text", _object(prompt=_TEXT), DetokenizeRequest),
    "/v1/models": _Operation(
        "The models served", _object(object={"const": "list"}, data=_list(_object(id=_TEXT)))
    ),
    "/v1/completions": _Operation(
        "Continue a text",
        _object(
            id=_TEXT,
            object={"const": "text_completion"},
            model=_TEXT,
            choices=_list(_choice(text=_TEXT)),
            usage=_USAGE,
        ),
        CompletionRequest,
        streams=True,
    ),
    "/v1/chat/completions": _Operation(
        "Answer a conversation",
        _object(
            id=_TEXT,
            object={"const": "chat.completion"},
            model=_TEXT,
            choices=_list(_choice(message=_MESSAGE)),
            usage=_USAGE,
        ),
        ChatRequest,
        streams=True,
    ),
    "/v1/messages": _Operation(
        "Answer a conversation, as Anthropic's API does",
        _object(
            id=_TEXT,
            type={"const": "message"},
            role={"const": "assistant"},
            content=_list(_object(type=_TEXT)),
            stop_reason=_nullable("string"),
            usage=_object(input_tokens=_COUNT, output_tokens=_COUNT),
        ),
        MessagesRequest,
        streams=True,
    ),
    "/v1/responses": _Operation(
        "Answer a conversation, as OpenAI's Responses API does",
        _object(
            id=_TEXT,
            object={"const": "response"},
            status={"enum": ["completed", "incomplete"]},
            output=_list(_object(type=_TEXT)),
        ),
        ResponsesRequest,
        streams=True,
    ),
}


@cache
def document() -> dict[str, Any]:
    """The document as JSON values."""
    requests = [each.request for each in _OPERATIONS.values() if each.request is not None]
    _, schemas = msgspec.json.schema_components(requests, ref_template=_REF)
    return {
        "openapi": "3.1.0",
        "info": {"title": "lite_llama", "version": "1"},
        "paths": {path: _path(operation) for path, operation in _OPERATIONS.items()},
        "components": {
            "schemas": {**schemas, "Error": _ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
        "security": [{}, {"key": []}],
    }


def _path(operation: _Operation) -> dict[str, Any]:
    content: dict[str, Any] = {operation.media_type: {"schema": operation.answer}}
    if operation.streams:
        content["text/event-stream"] = {"schema": _EVENT}
    described: dict[str, Any] = {
        "summary": operation.summary,
        "responses": {
            "200": {"description": "The answer", "content": content},
            **{status: _refusal(status) for status in ("4XX", "5XX")},
        },
    }
    if operation.request is None:
        return {"get": described}
    schema = {"$ref": _REF.format(name=operation.request.__name__)}
    body = {"required": True, "content": {"application/json": {"schema": schema}}}
    return {"post": {**described, "requestBody": body}}


def _refusal(status: str) -> dict[str, Any]:
    described = "The request is refused" if status == "4XX" else "Overloaded, late, or failed"
    schema = {"$ref": _REF.format(name="Error")}
    return {"description": described, "content": {"application/json": {"schema": schema}}}
