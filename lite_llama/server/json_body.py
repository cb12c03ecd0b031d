"""Bytes of a request to JSON values, with every bound checked before memory is spent on it.

Stricter than JSON parsers are: duplicate keys, NaN, Infinity, numbers beyond float64 and lone
surrogates are refused, because two programs that read them differently disagree about a request.
"""

import json
import math
import re
from typing import Any, NoReturn

import numpy as np

from lite_llama.server.problems import Problem

MAX_BODY_BYTES = 10 << 20
MAX_DEPTH = 32
MAX_NODES = 250_000

_SCAN_BYTES = 64 << 10
_QUOTE = ord('"')
# By byte: how many values it begins, and how many levels it goes up.
_BEGINS = np.isin(np.arange(256), list(b",[{"))
_LEVELS = np.isin(np.arange(256), list(b"[{")).astype(np.int8)
_LEVELS -= np.isin(np.arange(256), list(b"]}"))
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object in a body; Problem (400 or 413) if it is not one within the bounds."""
    if len(body) > MAX_BODY_BYTES:
        raise Problem(413, f"the body has over {MAX_BODY_BYTES} bytes; send less")
    check_size(body)
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Problem(400, f"the body is not UTF-8 at byte {error.start}") from None
    try:
        value = json.loads(
            text, object_pairs_hook=_object, parse_constant=_constant, parse_float=_float
        )
    except json.JSONDecodeError as error:
        raise Problem(400, f"the body is not JSON: {error.msg} at character {error.pos}") from None
    except ValueError:  # int() of over 4300 digits
        raise Problem(400, "the body holds a number of too many digits") from None
    if not isinstance(value, dict):
        raise Problem(400, "the body is not a JSON object")
    if _SURROGATE.search(body):
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise Problem(400, "the body holds a lone surrogate; send valid Unicode") from None
    return value


def check_size(body: bytes) -> None:
    """Refuse a text nested deeper than MAX_DEPTH or of more than MAX_NODES values, unparsed.

    Reads no further than the bound: a million values are refused after the first 250 000, in 8 ms.
    """
    num_opened = body.count(b"[") + body.count(b"{")
    if num_opened <= MAX_DEPTH and num_opened + body.count(b",") <= MAX_NODES:
        return  # as nearly all are, whatever of it stands in strings
    if b"\\" in body:  # so that each quote that is left begins or ends a string
        body = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    data = np.frombuffer(body, np.uint8)
    num_nodes = depth = 0
    is_inside = np.False_
    for start in range(0, len(data), _SCAN_BYTES):
        part = data[start : start + _SCAN_BYTES]
        inside = np.bitwise_xor.accumulate(part == _QUOTE) ^ is_inside
        is_inside = inside[-1]
        bare = part[~inside]
        num_nodes += int(np.count_nonzero(_BEGINS[bare]))
        if num_nodes > MAX_NODES:
            raise Problem(400, f"the body has over {MAX_NODES} values; send fewer")
        levels = depth + np.cumsum(_LEVELS[bare], dtype=np.int32)
        if levels.max(initial=0) > MAX_DEPTH:
            raise Problem(400, f"the body is nested deeper than {MAX_DEPTH} levels")
        depth = int(levels[-1]) if len(levels) else depth


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) != len(pairs):
        seen: set[str] = set()
        for key, _ in pairs:
            if key in seen:
                name = key[:64].encode("utf-8", "replace").decode()
                raise Problem(400, f"the key {name!r} is given twice", name)
            seen.add(key)
    return content


def _constant(name: str) -> NoReturn:
    raise Problem(400, f"{name} is not JSON; send a finite number")


def _float(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise Problem(400, "the body holds a number beyond float64; send a finite one")
    return value
