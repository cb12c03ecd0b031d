import time

import pytest

from lite_llama.server import json_body
from lite_llama.server.problems import Problem


@pytest.mark.parametrize(
    ("body", "status", "said"),
    [
        (b"", 400, "not JSON"),
        (b"{", 400, "not JSON"),
        (b'{"a":1}x', 400, "not JSON"),
        (b"[1]", 400, "not a JSON object"),
        (b"\xff{}", 400, "not UTF-8"),
        (b'{"a":"\xed\xa0\x80"}', 400, "not UTF-8"),
        (b'{"a":NaN}', 400, "NaN"),
        (b'{"a":-Infinity}', 400, "Infinity"),
        (b'{"a":1e400}', 400, "beyond float64"),
        (b'{"a":' + b"9" * 5000 + b"}", 400, "digits"),
        (b'{"a":1,"a":2}', 400, "twice"),
        (b'{"x":{"a":1,"a":2}}', 400, "twice"),
        (b'{"a":"\\ud800"}', 400, "surrogate"),
        (b'{"\\udfff":1}', 400, "surrogate"),
        (b'{"a":"\x00"}', 400, "not JSON"),
        (b"[" * 100_000, 400, "nested"),
        (b'{"a":' * 33 + b"1" + b"}" * 33, 400, "nested"),
        (b'{"a":[' + b"0," * 250_000 + b"0]}", 400, "values"),
        (b" " * (json_body.MAX_BODY_BYTES + 1), 413, "bytes"),
    ],
)
def test_what_is_not_plain_json_is_refused(body: bytes, status: int, said: str) -> None:
    with pytest.raises(Problem, match=said) as caught:
        json_body.parse(body)
    assert caught.value.status == status


def test_a_sound_body_is_read_as_json_is() -> None:
    body = '{"a": [1, 2.5, true, null, "é \\ud83d\\ude00 \\"[{,"], "b": {}}'.encode()
    assert json_body.parse(body) == {"a": [1, 2.5, True, None, 'é 😀 "[{,'], "b": {}}


def test_brackets_inside_strings_are_not_counted() -> None:
    assert json_body.parse(b'{"a": "' + b"[" * 1000 + b'"}') == {"a": "[" * 1000}


@pytest.mark.parametrize("piece", [b'\\"', b'"', b"\\", b"[", b'"\\'])
def test_the_scan_takes_linear_time(piece: bytes) -> None:
    def seconds(size: int) -> float:
        body = b'{"a": "' + piece * (size // len(piece))
        begun = time.perf_counter()
        with pytest.raises(Problem):
            json_body.parse(body)
        return time.perf_counter() - begun

    seconds(1000)
    assert seconds(4_000_000) < 40 * seconds(400_000) + 0.5


def test_a_body_of_100_kb_is_checked_within_5_ms() -> None:
    body = b'{"messages": [' + b",".join([b'{"role": "user", "content": "hello"}'] * 2700) + b"]}"
    assert 95_000 < len(body) < 105_000
    times = []
    for _ in range(20):
        begun = time.perf_counter()
        json_body.parse(body)
        times.append(time.perf_counter() - begun)
    assert sorted(times)[10] < 0.005


@pytest.mark.parametrize("size", [1, 2, 3, 7, 64 << 10])
def test_the_scan_counts_the_same_wherever_it_is_cut(
    monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    monkeypatch.setattr(json_body, "_SCAN_BYTES", size)
    monkeypatch.setattr(json_body, "MAX_NODES", 6)
    monkeypatch.setattr(json_body, "MAX_DEPTH", 2)
    for fits in (
        "[1,2,3,4,5,6]",
        '{"a\\"[[[":["\\\\",2,3]}',
        '[["]]\\\\\\"[["]]',
        '["", "[,{", ""]',
    ):
        json_body.check_size(fits.encode())
    for refused in ("[1,2,3,4,5,6,7]", '["\\\\",[[1]]]', '["\\\\\\"",[["a"]]]', '{"a":{"b":{}}}'):
        with pytest.raises(Problem):
            json_body.check_size(refused.encode())
