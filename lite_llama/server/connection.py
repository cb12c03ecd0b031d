"""uvicorn's HTTP connection, with bounds on the head of a request: its bytes, count and time.

What is written in one turn of the event loop leaves in one piece, and the application may use an
`Exchange` instead of the slower ways of ASGI.
"""

import asyncio
import weakref
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

# Where a scope has its Exchange, in its `extensions`; another server's scope has none.
EXCHANGE = "lite_llama.exchange"
MAX_HEADER_BYTES = 64 << 10
MAX_HEADERS = 100
HEADER_TIMEOUT_S = 5.0


class _HeadTooLarge(Exception):
    """Stops the parser."""


class Exchange:
    """One request and its answer, past ASGI: a queue, an event and a task less for each."""

    def __init__(
        self, cycle: RequestResponseCycle, flow: FlowControl, watchers: set[Callable[[], None]]
    ) -> None:
        # The cycle's scope has this object: two that keep each other are left to the collector.
        self._cycle: RequestResponseCycle = weakref.proxy(cycle)
        self._flow = flow
        self._watchers = watchers

    @property
    def is_gone(self) -> bool:
        """Whether the client has closed the connection."""
        return self._cycle.disconnected

    def take_body(self) -> bytes | None:
        """The body, if all of it has come; else it is to be received."""
        cycle = self._cycle
        if cycle.more_body or cycle.waiting_for_100_continue:
            return None
        body, cycle.body = bytes(cycle.body), bytearray()
        return body

    def watch(self, on_gone: Callable[[], None]) -> None:
        """Call this when the client closes the connection."""
        self._flow.resume_reading()
        self._watchers.add(on_gone)

    def unwatch(self, on_gone: Callable[[], None]) -> None:
        """Call it no more."""
        self._watchers.discard(on_gone)

    def write_part(self, part: bytes) -> bool:
        """Write a part of a chunked body, behind its head; not if the client reads too slowly."""
        cycle = self._cycle
        if self._flow.write_paused or not cycle.chunked_encoding:
            return False
        if not cycle.disconnected:
            cycle.transport.write(b"%x\r\n%b\r\n" % (len(part), part))
        return True

    def flush(self) -> None:
        """Let what is written leave at once."""
        self._cycle.transport.flush()  # type: ignore[attr-defined]


class _Gathering:
    """A transport that writes at the end of a turn of the loop what the turn has brought."""

    def __init__(self, transport: asyncio.Transport, loop: asyncio.AbstractEventLoop) -> None:
        self._transport = transport
        self._loop = loop
        self._parts: list[bytes] = []

    def write(self, data: bytes) -> None:
        """Write before the loop looks at its sockets again."""
        if not self._parts:
            self._loop.call_soon(self.flush)
        self._parts.append(data)

    def close(self) -> None:
        """Close behind what has been written."""
        self.flush()
        self._transport.close()

    def flush(self) -> None:
        """Write it now."""
        if self._parts:
            parts, self._parts = self._parts, []
            if not self._transport.is_closing():  # else the client has left since
                self._transport.write(b"".join(parts))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._transport, name)


class BoundedConnection(HttpToolsProtocol):
    """Answers 431 to an oversized head, and closes a connection that takes too long to send one."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._head_bytes = 0
        self._in_head = True
        self._is_refused = False
        self._head_timer: asyncio.TimerHandle | None = None
        self._watchers: set[Callable[[], None]] = set()

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Start the clock of the first head."""
        super().connection_made(_Gathering(transport, self.loop))  # type: ignore[arg-type]
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock, and tell those who work for the client."""
        self._stop_timer()
        super().connection_lost(exc)
        for on_gone in tuple(self._watchers):
            on_gone()

    def data_received(self, data: bytes) -> None:
        """Parse, unless the connection has been refused."""
        if self._is_refused:
            return
        self._head_bytes += len(data)
        super().data_received(data)
        if self._in_head and self._head_bytes > MAX_HEADER_BYTES and not self._is_refused:
            self._refuse()

    def on_message_begin(self) -> None:
        """A head begins; a kept-alive connection has its clock start here."""
        super().on_message_begin()
        self._in_head = True
        self._await_head()

    def on_headers_complete(self) -> None:
        """Check the head, then let the application have the request."""
        self._stop_timer()
        size = len(self.url) + sum(len(name) + len(value) + 4 for name, value in self.headers)
        if size > MAX_HEADER_BYTES or len(self.headers) > MAX_HEADERS:
            self._refuse()
            raise _HeadTooLarge
        self._in_head = False
        super().on_headers_complete()
        exchange = Exchange(self.cycle, self.flow, self._watchers)
        self.scope["extensions"] = {EXCHANGE: exchange}  # type: ignore[dict-item]

    def on_message_complete(self) -> None:
        """The next bytes are another head."""
        super().on_message_complete()
        self._in_head = True
        self._head_bytes = 0

    def send_400_response(self, msg: str) -> None:  # noqa: ARG002 - ours says it better
        """Answer what is not HTTP; a refused connection has its answer already."""
        if not self._is_refused:
            self._is_refused = True
            self._answer(b"400 Bad Request", b"the request is not HTTP/1.1")

    def _refuse(self) -> None:
        self._is_refused = True
        self._answer(
            b"431 Request Header Fields Too Large",
            b"the headers are limited to %d bytes and %d fields" % (MAX_HEADER_BYTES, MAX_HEADERS),
        )

    def _answer(self, status: bytes, message: bytes) -> None:
        body = (
            b'{"error":{"message":"%s","type":"invalid_request_error","param":null,"code":null}}'
            % message
        )
        self.transport.write(
            b"HTTP/1.1 %s\r\ncontent-type: application/json\r\ncontent-length: %d\r\n"
            b"connection: close\r\n\r\n%s" % (status, len(body), body)
        )
        self.transport.close()

    def _await_head(self) -> None:
        self._stop_timer()
        self._head_timer = self.loop.call_later(HEADER_TIMEOUT_S, self._give_up)

    def _stop_timer(self) -> None:
        if self._head_timer is not None:
            self._head_timer.cancel()
            self._head_timer = None

    def _give_up(self) -> None:
        if not self.transport.is_closing():
            self.transport.close()
