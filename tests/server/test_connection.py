"""What is merged on its way out is still what was said, and a client that leaves is noticed."""

import asyncio
import http.client
import json
import socket
from typing import Any

import httpx
import pytest

from lite_llama.server.connection import _Gathering
from tests.server.servers import LocalServer, wait_until

CHAT = {"messages": [{"role": "user", "content": "Hi"}], "stream": True, "temperature": 0}
PLAIN = {
    "prompt": "Hi",
    "stream": True,
    "temperature": 0,
    "stream_options": {"include_usage": True},
}


def raw(path: str, body: dict[str, Any]) -> bytes:
    content = json.dumps(body).encode()
    head = f"POST {path} HTTP/1.1\r\nhost: localhost\r\ncontent-type: application/json\r\n"
    return head.encode() + b"content-length: %d\r\n\r\n%b" % (len(content), content)


@pytest.mark.parametrize("num_tokens", [1, 2, 8])
@pytest.mark.parametrize(
    ("path", "body"), [("/v1/chat/completions", CHAT), ("/v1/completions", PLAIN)]
)
def test_streams_are_whole_to_two_clients(
    server: LocalServer, path: str, body: dict[str, Any], num_tokens: int
) -> None:
    body = {**body, "max_tokens": num_tokens, "ignore_eos": True}
    texts = [server.post(path, body).text]
    connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=30)
    for _ in range(2):  # the second on a connection that is kept
        connection.request("POST", path, json.dumps(body), {"content-type": "application/json"})
        answer = connection.getresponse()
        assert answer.headers["transfer-encoding"] == "chunked"
        texts.append(answer.read().decode())
    connection.close()
    said = []
    for text in texts:
        *parts, last, rest = text.split("\n\n")
        assert (last, rest) == ("data: [DONE]", "")
        events = [json.loads(part.removeprefix("data: ")) for part in parts]
        choices = [choice for event in events for choice in event["choices"]]
        assert [choice["finish_reason"] for choice in choices if choice["finish_reason"]] == [
            "length"
        ]
        if path == "/v1/chat/completions":
            assert choices[0]["delta"] == {"role": "assistant", "content": ""}
            said.append("".join(choice["delta"].get("content", "") for choice in choices))
        else:
            assert events[-1]["usage"]["completion_tokens"] == num_tokens
            said.append("".join(choice["text"] for choice in choices))
    assert said == [said[0]] * 3


def test_pipelined_requests_are_answered_in_order(server: LocalServer) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        bodies = [{**PLAIN, "max_tokens": number, "ignore_eos": True} for number in (3, 1, 2)]
        client.sendall(b"".join(raw("/v1/completions", body) for body in bodies))
        said = b""
        while said.count(b"[DONE]\n\n\r\n0\r\n\r\n") < 3:
            part = client.recv(65536)
            assert part
            said += part
    counts = [part[: part.index(b",")] for part in said.split(b'"completion_tokens":')[1:]]
    assert counts == [b"3", b"1", b"2"]


@pytest.mark.parametrize("stream", [True, False])
@pytest.mark.parametrize("num_requests", [1, 2])
def test_a_client_that_leaves_between_events_ends_its_request(
    server: LocalServer, num_requests: int, *, stream: bool
) -> None:
    body = {"prompt": "Hi", "stream": stream, "max_tokens": 200, "ignore_eos": True}
    with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
        client.sendall(raw("/v1/completions", body) * num_requests)
        if stream:
            assert client.recv(100)
        wait_until(lambda: server.service.engine.num_reserved == 1)
    wait_until(server.is_idle, 2)


def test_a_client_that_sends_half_a_body_and_leaves_is_no_error(server: LocalServer) -> None:
    errors = []
    log_error = server.service.metrics.log_error
    server.service.metrics.log_error = lambda *each: errors.append(each)  # type: ignore[method-assign]
    try:
        with socket.create_connection(("127.0.0.1", server.port), timeout=30) as client:
            client.sendall(raw("/v1/completions", PLAIN)[:-5])
        assert httpx.get(f"{server.url}/health").status_code == 200
    finally:
        server.service.metrics.log_error = log_error  # type: ignore[method-assign]
    assert errors == []


class Transport:
    """Notes what is done with it."""

    def __init__(self) -> None:
        self.done: list[bytes | str] = []

    def is_closing(self) -> bool:
        return "close" in self.done

    def write(self, data: bytes) -> None:
        self.done.append(data)

    def close(self) -> None:
        self.done.append("close")


def test_what_one_turn_writes_leaves_in_one_piece() -> None:
    transport = Transport()

    async def write() -> None:
        gathering = _Gathering(transport, asyncio.get_running_loop())  # type: ignore[arg-type]
        gathering.write(b"head ")
        gathering.write(b"first")
        assert transport.done == []
        await asyncio.sleep(0)
        assert transport.done == [b"head first"]
        gathering.write(b"end")
        gathering.close()
        gathering.write(b"nobody reads this")
        await asyncio.sleep(0)

    asyncio.run(write())
    assert transport.done == [b"head first", b"end", "close"]
