"""What all endpoints share: reading a body, noticing a disconnect, server-sent events."""

import asyncio
import contextlib
import random
from collections.abc import AsyncGenerator, Callable, Coroutine
from typing import Any, TypeVar

import msgspec
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

from lite_llama.server import json_body
from lite_llama.server.connection import EXCHANGE, Exchange
from lite_llama.server.problems import Problem

T = TypeVar("T")

BODY_TIMEOUT_S = 10.0
PING_INTERVAL_S = 15.0
# A longer body is parsed beside the event loop; 256 KiB take about 5 ms.
_LONG_BODY_BYTES = 256 << 10
_PING = b": ping\n\n"
_STREAM_HEADERS = (
    (b"cache-control", b"no-cache"),
    (b"content-type", b"text/event-stream; charset=utf-8"),
)

encode = msgspec.json.Encoder().encode
_draw = random.Random()  # seeded by the system, which is slow to ask each time


def fresh_id() -> str:
    """24 hexadecimal digits that name something; not a secret."""
    return f"{_draw.getrandbits(96):024x}"


def data_event(content: Any) -> bytes:
    """One server-sent event without a name."""
    return b"data: " + encode(content) + b"\n\n"


def choice_prefix(base: dict[str, Any]) -> bytes:
    """How an event with these fields and one choice begins, up to the choice's index."""
    return b'data: %b,"choices":[{"index":' % encode(base)[:-1]


def named_event(name: str, content: Any) -> bytes:
    """One server-sent event with a name."""
    return b"event: %s\n" % name.encode() + data_event(content)


class Request:
    """What comes in with one call of the application."""

    def __init__(self, scope: Scope, receive: Receive) -> None:
        self.scope = scope
        self.receive = receive
        # By name in lower case; the first of several counts.
        self.headers: dict[str, str] = {
            name.decode("latin-1"): value.decode("latin-1")
            for name, value in reversed(scope["headers"])
        }


class JsonResponse(Response):
    """A JSON answer."""

    media_type = "application/json"

    def render(self, content: Any) -> bytes:
        """Encode any mix of structs, dicts and lists."""
        return encode(content)


def problem_response(problem: Problem) -> JsonResponse:
    """The error envelope of a problem."""
    return JsonResponse(problem.envelope(), problem.status, headers=problem.headers)


async def read_json(request: Request) -> dict[str, Any]:
    """The request's JSON object; Problem 400, 408, 413 or 415 if there is none."""
    return await parse_json(await read_body(request))


async def read_body(request: Request) -> bytes:
    """The body of a JSON request; Problem 408, 413 or 415 if it is slow, large or another kind."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise Problem(415, "content-type is not application/json; send JSON", "content-type")
    announced = request.headers.get("content-length", "0")
    if announced.isdecimal() and int(announced) > json_body.MAX_BODY_BYTES:
        raise _too_large()
    exchange = exchange_of(request.scope)
    if exchange is not None and (body := exchange.take_body()) is not None:
        if len(body) > json_body.MAX_BODY_BYTES:
            raise _too_large()
        return body
    parts: list[bytes] = []
    size = 0
    try:
        async with asyncio.timeout(BODY_TIMEOUT_S):
            more = True
            while more:
                message = await request.receive()
                if message["type"] == "http.disconnect":
                    raise ClientGone
                part, more = message.get("body", b""), message.get("more_body", False)
                size += len(part)
                if size > json_body.MAX_BODY_BYTES:
                    raise _too_large()
                parts.append(part)
    except TimeoutError:
        raise Problem(
            408,
            f"the body took over {BODY_TIMEOUT_S:g} s; send it faster",
            headers={"connection": "close"},
        ) from None
    return b"".join(parts)


async def parse_json(body: bytes) -> dict[str, Any]:
    """The JSON object in a body, parsed beside the event loop if it is long; or Problem 400."""
    if len(body) > _LONG_BODY_BYTES:
        return await asyncio.to_thread(json_body.parse, body)
    return json_body.parse(body)


def _too_large() -> Problem:
    return Problem(
        413,
        f"the body has over {json_body.MAX_BODY_BYTES} bytes; send less",
        headers={"connection": "close"},
    )


def exchange_of(scope: Scope) -> Exchange | None:
    """The way past ASGI, if our own connection has brought the request."""
    found: Exchange | None = scope.get("extensions", {}).get(EXCHANGE)
    return found


async def until_disconnect(scope: Scope, receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """Run `work`; cancel it, and raise ClientGone, when the client has gone."""
    exchange = exchange_of(scope)
    task = asyncio.current_task()
    if exchange is None or task is None:
        return await _until_received(receive, work)
    if exchange.is_gone:
        work.close()
        raise ClientGone
    has_left = False

    def leave() -> None:
        nonlocal has_left
        has_left = True
        task.cancel()

    exchange.watch(leave)
    try:
        return await work
    except asyncio.CancelledError:
        if not has_left or task.uncancel() > 0:
            raise  # someone else has cancelled it too
        raise ClientGone from None
    finally:
        exchange.unwatch(leave)


async def _until_received(receive: Receive, work: Coroutine[Any, Any, T]) -> T:
    """`until_disconnect` by plain ASGI, with a task for the work and one that watches."""
    task = asyncio.create_task(work)
    watcher = asyncio.create_task(_disconnected(receive))
    try:
        await asyncio.wait((task, watcher), return_when=asyncio.FIRST_COMPLETED)
        if not task.done():
            raise ClientGone
        return task.result()
    finally:
        for each in (task, watcher):
            each.cancel()
        await asyncio.gather(task, watcher, return_exceptions=True)


class ClientGone(Exception):
    """The client closed its connection before the answer was complete."""


async def _disconnected(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


class EventStream(Response):
    """Server-sent events, from an iterator of encoded ones.

    The status is decided by the first event: a problem before it is answered as such. One behind
    it is sent as an event, made by `describe`. A silent stream is pinged, so that proxies keep it.
    """

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        headers: dict[str, str],
        describe: Callable[[Problem], bytes] | None = None,
    ) -> None:
        # As starlette's own would make them, which takes it longer.
        self.status_code = 200
        self.background = None
        self.raw_headers = [
            *_STREAM_HEADERS,
            *((name.encode(), value.encode()) for name, value in headers.items()),
        ]
        self.events = events
        self.describe = describe or (lambda problem: data_event(problem.envelope()))
        self._started = False
        self._quiet = False
        self._timer: asyncio.TimerHandle | None = None
        self._ping: asyncio.Future[None] | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send the stream; the iterator is closed on every way out."""
        exchange = exchange_of(scope)
        with contextlib.suppress(ClientGone):
            await until_disconnect(scope, receive, self._send_all(send, exchange))

    async def _send_all(self, send: Send, exchange: Exchange | None) -> None:
        self._watch_silence(send)
        try:
            async for event in self.events:
                is_first = not self._started
                if is_first:
                    await self._start(send)
                self._quiet = False
                if exchange is None or not exchange.write_part(event):
                    await send({"type": "http.response.body", "body": event, "more_body": True})
                elif is_first:
                    exchange.flush()
            await self._send(send, b"", more=False)
        except Problem as problem:
            if self._started:
                await self._send(send, self.describe(problem), more=False)
            else:
                await problem_response(problem)({"type": "http"}, _nothing_to_receive, send)
        finally:
            if self._timer is not None:
                self._timer.cancel()
            if self._ping is not None:
                self._ping.cancel()
            await self.events.aclose()

    async def _start(self, send: Send) -> None:
        self._started = True
        status, headers = self.status_code, self.raw_headers
        await send({"type": "http.response.start", "status": status, "headers": headers})

    async def _send(self, send: Send, body: bytes, *, more: bool = True) -> None:
        if not self._started:
            await self._start(send)
        self._quiet = False
        await send({"type": "http.response.body", "body": body, "more_body": more})

    def _watch_silence(self, send: Send) -> None:
        """Ping if there was nothing since the last call. A timer costs less than a task."""
        if self._quiet:
            self._ping = asyncio.ensure_future(self._send(send, _PING))
        self._quiet = True
        self._timer = asyncio.get_running_loop().call_later(
            PING_INTERVAL_S, self._watch_silence, send
        )


async def _nothing_to_receive() -> dict[str, Any]:
    return {"type": "http.disconnect"}
