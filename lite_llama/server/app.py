"""The ASGI application: who may ask, which route it is, and what goes wrong.

Routes are an exact table; every one but /health and /ready needs a key when keys are set.
"""

import base64
import binascii
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Coroutine, Mapping
from dataclasses import dataclass
from importlib.resources import files
from typing import Any
from urllib.parse import urlsplit

from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from lite_llama.server import chat, completions, messages, openapi, responses
from lite_llama.server.config import Keys, ServeConfig
from lite_llama.server.http import (
    ClientGone,
    EventStream,
    JsonResponse,
    Request,
    fresh_id,
    problem_response,
    read_json,
    until_disconnect,
)
from lite_llama.server.problems import Problem
from lite_llama.server.protocol import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    TokenizeRequest,
    read,
)
from lite_llama.server.service import Caller, Service
from lite_llama.server.tracing import OPERATIONS, Tracer

log = logging.getLogger("lite_llama.server")

_OPEN_PATHS = frozenset({"/health", "/ready"})
_LOCAL_NAMES = frozenset({"localhost", "127.0.0.1", "::1"})
_MAX_ID_CHARS = 128

Handler = Callable[[Service, Request, Caller], Awaitable[Response]]


@dataclass(frozen=True)
class Route:
    """What one path does."""

    method: str
    handle: Handler


class Guard:
    """Who may ask: checks Host, Origin and API key."""

    def __init__(self, config: ServeConfig) -> None:
        self._is_loopback = config.is_loopback
        self._local_names = _LOCAL_NAMES | set(config.allowed_hosts)
        self._keys = Keys(config.api_keys)

    def admit(self, request: Request) -> str:
        """The caller's cache salt; Problem 401 or 403 if it may not ask."""
        self._check_origin(request)
        return self._authorise(request)

    def _check_origin(self, request: Request) -> None:
        """Against DNS rebinding, and pages of other sites that call a local server."""
        host = request.headers.get("host", "")
        name = urlsplit(f"//{host}").hostname if host else None
        if self._is_loopback and name not in self._local_names:
            raise Problem(403, "this Host is not served here; see --allowed-host")
        origin = request.headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host:
            raise Problem(403, "requests from pages of other sites are refused")

    def _authorise(self, request: Request) -> str:
        """The caller's cache salt; Problem 401 if it has no key where one is needed."""
        if not self._keys or request.scope["path"] in _OPEN_PATHS:
            return ""
        salt = self._keys.salt_of(_key_of(request))
        if salt is None:
            raise Problem(
                401,
                "a valid API key is needed: send Authorization: Bearer <key>",
                code="invalid_api_key",
                headers={"www-authenticate": 'Basic realm="lite_llama", charset="UTF-8"'},
            )
        return salt if len(self._keys) > 1 else ""


class App:
    """Checks, dispatches and logs each request."""

    def __init__(self, service: Service, config: ServeConfig, tracer: Tracer | None = None) -> None:
        self.service = service
        self._tracer = tracer
        self._guard = Guard(config)
        self.routes: Mapping[str, Route] = {
            "/": Route("GET", _page),
            "/health": Route("GET", _health),
            "/ready": Route("GET", _ready),
            "/metrics": Route("GET", _metrics),
            "/openapi.json": Route("GET", _openapi),
            "/tokenize": Route("POST", _tokenize),
            "/detokenize": Route("POST", _detokenize),
            "/v1/models": Route("GET", _models),
            "/v1/completions": Route("POST", _COMPLETIONS),
            "/v1/chat/completions": Route("POST", _CHAT_COMPLETIONS),
            "/v1/messages": Route("POST", _MESSAGES),
            "/v1/responses": Route("POST", _RESPONSES),
        }

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, from its head to its log line."""
        if scope["type"] != "http":
            return
        started = time.monotonic()
        status = 0
        request = Request(scope, receive)
        request_id = _request_id(request)
        caller = Caller(started)

        def send_noting(message: Message) -> Awaitable[None]:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                message["headers"] = [
                    *message["headers"],
                    (b"x-request-id", request_id.encode()),
                    (b"x-content-type-options", b"nosniff"),
                ]
            return send(message)

        try:
            response = await self._answer(request, caller)
            await response(scope, receive, send_noting)
        except ClientGone:
            status = status or 499  # nginx's number for a client that left
        except Exception as error:  # noqa: BLE001 - a bug of ours must not show in the answer
            self.service.metrics.log_error("a request failed", error)
            if status == 0:
                failed = Problem(500, "the server failed on this request")
                await problem_response(failed)(scope, receive, send_noting)
        finally:
            path = scope["path"] if scope["path"] in self.routes else "(unknown)"
            self.service.metrics.answered(path, status)
            if self._tracer is not None and path in OPERATIONS:
                self._tracer.record(path, request.headers, caller, status)
            log.info(
                "%s %s %d %.1f ms id=%s",
                scope["method"],
                path,
                status,
                (time.monotonic() - started) * 1e3,
                request_id,
            )

    async def _answer(self, request: Request, caller: Caller) -> Response:
        try:
            caller.salt = self._guard.admit(request)
            route = self.routes.get(request.scope["path"])
            if route is None:
                raise Problem(404, "there is no such route")
            if request.scope["method"] != route.method:
                raise Problem(
                    405, f"use {route.method} for this route", headers={"allow": route.method}
                )
            return await route.handle(self.service, request, caller)
        except Problem as problem:
            return problem_response(problem)


def _key_of(request: Request) -> str:
    """The key that a request carries: Bearer, Anthropic's x-api-key, or a browser's password."""
    scheme, _, value = request.headers.get("authorization", "").partition(" ")
    if scheme.lower() == "bearer":
        return value.strip()
    if scheme.lower() == "basic":
        try:
            return base64.b64decode(value, validate=True).decode().partition(":")[2]
        except (binascii.Error, UnicodeDecodeError):
            return ""
    return request.headers.get("x-api-key", "")


def _request_id(request: Request) -> str:
    given = request.headers.get("x-request-id", "")
    if 0 < len(given) <= _MAX_ID_CHARS and all("!" <= char <= "~" for char in given):
        return given
    return fresh_id()


def _ignored(names: list[str]) -> dict[str, str]:
    """The header that lists fields nobody reads."""
    plain = [name for name in names if name.isascii() and name.isidentifier() and len(name) <= 64]
    return {"x-ignored-fields": ", ".join(plain[:32]) or "(unprintable)"} if names else {}


@dataclass(frozen=True)
class Generates:
    """The handler of a route that generates: what reads its body, and what writes its answer."""

    request: type[Any]
    writer: Callable[[Service, Any, str], Any]
    stream: Callable[[Any, Caller], AsyncGenerator[bytes, None]]
    complete: Callable[[Any, Caller], Coroutine[Any, Any, dict[str, Any]]]
    describe: Callable[[Problem], bytes] | None = None

    async def __call__(self, service: Service, request: Request, caller: Caller) -> Response:
        """The whole answer, or its stream if the body asks for one."""
        await service.engine.turn()
        body, unknown = read(await read_json(request), self.request)
        writer = self.writer(service, body, service.check_model(body.model))
        if body.stream:
            return EventStream(self.stream(writer, caller), _ignored(unknown), self.describe)
        content = await until_disconnect(
            request.scope, request.receive, self.complete(writer, caller)
        )
        return JsonResponse(content, headers=_ignored(unknown))


_COMPLETIONS = Generates(
    CompletionRequest, completions.CompletionWriter, completions.stream, completions.complete
)
_CHAT_COMPLETIONS = Generates(ChatRequest, chat.ChatWriter, chat.stream, chat.complete)
_MESSAGES = Generates(
    messages.MessagesRequest,
    messages.MessagesWriter,
    messages.stream,
    messages.complete,
    messages.error_event,
)
_RESPONSES = Generates(
    responses.ResponsesRequest, responses.ResponsesWriter, responses.stream, responses.complete
)


async def _tokenize(service: Service, request: Request, caller: Caller) -> Response:
    del caller
    body, unknown = read(await read_json(request), TokenizeRequest)
    service.check_model(body.model)
    if (body.prompt is None) == (body.messages is None):
        raise Problem(400, "give either prompt or messages", "prompt")
    if body.prompt is not None:
        text, add = body.prompt, body.add_special_tokens is not False
        service.check_bytes(len(text.encode()), "prompt")
        ids = await service.in_thread(lambda: service.encode(text, add_special_tokens=add))
    else:
        ids = await chat.tokenize(service, body)
    content = {"count": len(ids), "max_model_len": service.text.max_model_len, "tokens": ids}
    return JsonResponse(content, headers=_ignored(unknown))


async def _detokenize(service: Service, request: Request, caller: Caller) -> Response:
    del caller
    body, unknown = read(await read_json(request), DetokenizeRequest)
    service.check_model(body.model)
    limit = service.text.tokenizer.vocab_size
    service.check_bytes(len(body.tokens), "tokens")
    for token in body.tokens:
        if not 0 <= token < limit:
            raise Problem(400, f"tokens has id {token}, limit 0..{limit - 1}", "tokens")
    text = await service.in_thread(
        lambda: service.text.tokenizer.decode(body.tokens, skip_special_tokens=False)
    )
    return JsonResponse({"prompt": text}, headers=_ignored(unknown))


async def _models(service: Service, request: Request, caller: Caller) -> Response:
    del request, caller
    data = [
        {
            "id": name,
            "object": "model",
            "created": service.created,
            "owned_by": "lite_llama",
            "max_model_len": service.text.max_model_len,
            "sampling_defaults": service.described_defaults,
        }
        for name in service.names
    ]
    return JsonResponse({"object": "list", "data": data})


async def _health(service: Service, request: Request, caller: Caller) -> Response:
    del service, request, caller
    return JsonResponse({"status": "alive"})


async def _ready(service: Service, request: Request, caller: Caller) -> Response:
    del request, caller
    if service.is_ready:
        return JsonResponse({"status": "ready"})
    return JsonResponse({"status": "not ready"}, 503, headers={"retry-after": "5"})


async def _metrics(service: Service, request: Request, caller: Caller) -> Response:
    del request, caller
    return Response(service.metrics.render(), media_type="text/plain; version=0.0.4")


async def _openapi(service: Service, request: Request, caller: Caller) -> Response:
    del service, request, caller
    return JsonResponse(openapi.document())


_PAGE = files("lite_llama.server").joinpath("page.html")
_PAGE_POLICY = (
    "default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)


async def _page(service: Service, request: Request, caller: Caller) -> Response:
    del service, request, caller
    headers: dict[str, Any] = {"content-security-policy": _PAGE_POLICY, "cache-control": "no-cache"}
    return Response(_PAGE.read_bytes(), media_type="text/html", headers=headers)
