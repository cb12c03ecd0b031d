"""Bytes of a request to JSON values, with every bound checked before memory is spent on it.

Stricter than JSON parsers are: duplicate keys, NaN, Infinity, numbers beyond float64 and lone
surrogates are refused, because two programs that read them differently disagree about a request.
"""

import json
import math
import re
from typing import Any, NoReturn

from lite_llama.server.problems import Problem

MAX_BODY_BYTES = 10 << 20
MAX_DEPTH = 32
MAX_NODES = 250_000

# Possessive, so that a string that never ends is read once.
_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
_NO_BRACKETS = bytes(set(range(256)) - set(b"[]{}"))
_SURROGATE = re.compile(rb"\\u[dD][89a-fA-F]")


def parse(body: bytes) -> dict[str, Any]:
    """The JSON object in a body; Problem (400 or 413) if it is not one within the bounds."""
    if len(body) > MAX_BODY_BYTES:
        raise Problem(413, f"the body has over {MAX_BODY_BYTES} bytes; send less")
    try:
        text = body.decode("utf-8")
    except UnicodeDecodeError as error:
        raise Problem(400, f"the body is not UTF-8 at byte {error.start}") from None
    check_size(body)
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
    """Refuse a text nested deeper than MAX_DEPTH or of more than MAX_NODES values, unparsed."""
    bare = _STRING.sub(b"", body)
    if bare.count(b",") + bare.count(b"[") + bare.count(b"{") > MAX_NODES:
        raise Problem(400, f"the body has over {MAX_NODES} values; send fewer")
    depth = 0
    for char in bare.translate(None, _NO_BRACKETS):
        depth += 1 if char in b"[{" else -1
        if depth > MAX_DEPTH:
            raise Problem(400, f"the body is nested deeper than {MAX_DEPTH} levels")


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
