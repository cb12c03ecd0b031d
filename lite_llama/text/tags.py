"""What an answer's text is made of: reasoning between think tags, tool calls, and the rest.

Models write these with plain tags, so they are found by scanning, piece by piece and in linear
time. What a model wrote is only ever read as JSON.
"""

import json
import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any, NoReturn

_THINK, _END_THINK = "<think>", "</think>"
_CALL, _END_CALL = "<tool_call>", "</tool_call>"
# How a call begins whose arguments can be handed on as they come, and how far that is looked for.
_HEAD = re.compile(
    r'\s*\[?\s*\{\s*"name"\s*:\s*"([^"\\]*)"\s*,\s*"(?:arguments|parameters)"\s*:\s*(?=\{)'
)
_MAX_HEAD = 256
# What may stand between two calls.
_SEPARATORS = " \t\r\n;,]"
# So much white space before a tag, or an answer in JSON, belongs to it.
_MAX_SPACE = 64


class TagFinder:
    """Finds a tag in a text that comes in pieces, holding back what may be its beginning."""

    def __init__(self, tag: str) -> None:
        self._tag = tag
        self._held = ""

    def push(self, text: str) -> tuple[str, str | None]:
        """The text that is certainly before the tag, and what follows the tag if it is there."""
        text = self._held + text
        before, found, after = text.partition(self._tag)
        if found:
            self._held = ""
            return before, after
        length = min(len(self._tag) - 1, len(text))
        while length and not text.endswith(self._tag[:length]):
            length -= 1
        self._held = text[len(text) - length :]
        return text[: len(text) - length], None

    def finish(self) -> str:
        """What was held back."""
        held, self._held = self._held, ""
        return held


class ReasoningSplitter:
    """Splits an answer into what stands between think tags at its start, and the rest.

    `inside`: the prompt has opened the tag already.
    """

    def __init__(self, *, inside: bool) -> None:
        self._inside = inside
        self._at_start = not inside
        self._finder = TagFinder(_END_THINK)
        self._held = ""
        self._strip_content = self._strip_reasoning = False

    def push(self, text: str) -> tuple[str, str]:
        """The reasoning and the content that `text` adds."""
        if self._at_start:
            text = self._open(text)
        if not self._inside:
            return "", self._content(text)
        reasoning, after = self._finder.push(text)
        if self._strip_reasoning and reasoning:
            reasoning = reasoning.lstrip("\n")
            self._strip_reasoning = not reasoning
        if after is None:
            return reasoning, ""
        self._inside = False
        self._strip_content = True
        return reasoning, self._content(after)

    def finish(self) -> tuple[str, str]:
        """What was held back."""
        held, self._held = self._held, ""
        return (self._finder.finish(), "") if self._inside else ("", held)

    def _open(self, text: str) -> str:
        """Decide whether the answer begins with the tag; returns the text behind it."""
        self._held += text
        begun = self._held.lstrip()
        if len(self._held) - len(begun) <= _MAX_SPACE and _THINK.startswith(begun[: len(_THINK)]):
            if len(begun) < len(_THINK):
                return ""
            self._inside = self._strip_reasoning = True
            begun = begun[len(_THINK) :]
        else:
            begun = self._held
        self._at_start, self._held = False, ""
        return begun

    def _content(self, text: str) -> str:
        if self._strip_content and text:
            text = text.lstrip("\n")
            self._strip_content = not text
        return text


@dataclass(frozen=True)
class ToolCall:
    """A call that the model asks for; `arguments` is a JSON object as the model wrote it."""

    name: str
    arguments: str


@dataclass(frozen=True)
class CallPart:
    """A piece of a call as it is written. The first has the name; all have arguments to append."""

    name: str | None
    arguments: str


def join_calls(parts: Iterable[CallPart]) -> list[ToolCall]:
    """The calls that pieces make."""
    calls: list[tuple[str, list[str]]] = []
    for part in parts:
        if part.name is not None:
            calls.append((part.name, []))
        calls[-1][1].append(part.arguments)
    return [ToolCall(name, "".join(arguments)) for name, arguments in calls]


def read_arguments(text: str) -> dict[str, Any]:
    """A call's arguments as an object; empty if the model wrote, or was cut off in, no JSON."""
    value = _parse(text)
    return value if isinstance(value, dict) else {}


class _ObjectEnd:
    """Finds where a JSON object ends in a text that comes in pieces, `depth` braces deep."""

    def __init__(self, depth: int) -> None:
        self._depth = depth
        self._in_string = self._is_escaped = False

    def push(self, text: str) -> int | None:
        """How much of `text` belongs to the object; None if all does and there is more."""
        for index, char in enumerate(text):
            if self._is_escaped:
                self._is_escaped = False
            elif self._in_string:
                self._is_escaped = char == "\\"
                self._in_string = char != '"'
            elif char == '"':
                self._in_string = True
            elif char in "{[":
                self._depth += 1
            elif char in "}]":
                self._depth -= 1
                if self._depth == 0:
                    return index + 1
        return None


class _CallReader:
    """Reads one call in JSON piece by piece.

    Arguments are handed on as they come once the name, in front of them, is known to be a tool's.
    Else (arguments first, or none, or a string) `text` is kept, to be read when it is complete.
    """

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._kept: list[str] = []
        self._head: str | None = ""  # what may still become the beginning of a call
        self._arguments: _ObjectEnd | None = None
        self._rest: _ObjectEnd | None = None

    @property
    def text(self) -> str:
        """All that has been read, if it is not known to be a call."""
        return "".join(self._kept)

    def push(self, text: str) -> tuple[list[CallPart], str | None]:
        """Pieces of the call, and what follows it once it has ended."""
        name = None
        if self._arguments is None:
            self._kept.append(text)
            name, text = self._open(text)
            if name is None:
                return [], None
            self._kept, self._arguments = [], _ObjectEnd(0)
        parts: list[CallPart] = []
        if self._rest is None:
            end = self._arguments.push(text)
            parts.append(CallPart(name, text[:end]))
            if end is None:
                return parts, None
            self._rest, text = _ObjectEnd(1), text[end:]
        end = self._rest.push(text)
        return parts, None if end is None else text[end:]

    def _open(self, text: str) -> tuple[str | None, str]:
        """The call's name, when its arguments begin, and the text from there on."""
        if self._head is None:
            return None, ""
        head = self._head + text
        found = _HEAD.match(head)
        if found is not None and found[1] in self._names:
            return found[1], head[found.end() :]
        self._head = head if found is None and len(head) < _MAX_HEAD else None
        return None, ""


class TaggedCalls:
    """Tool calls as Qwen and Hermes models write them: JSON between <tool_call> tags."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._finder = TagFinder(_CALL)
        self._reader: _CallReader | None = None  # of the call being read
        self._is_call = False
        self._space = ""  # before a tag, it is part of the tag
        self.num_calls = 0

    def push(self, text: str) -> tuple[str, list[CallPart]]:
        """The content and the pieces of calls that `text` adds."""
        content: list[str] = []
        parts: list[CallPart] = []
        rest: str | None = text
        while rest is not None:
            before, rest = self._finder.push(rest)
            if self._reader is None:
                content.append(self._without_trailing_space(before))
                if rest is not None:
                    self._space, self._finder = "", TagFinder(_END_CALL)
                    self._reader, self._is_call = _CallReader(self._names), False
                continue
            self._read(before, parts)
            if rest is not None:
                self._close(_END_CALL, content, parts)
                self._finder = TagFinder(_CALL)
        return "".join(content), parts

    def finish(self) -> tuple[str, list[CallPart]]:
        """The content and the pieces of calls in what was held back."""
        content: list[str] = []
        parts: list[CallPart] = []
        held = self._finder.finish()
        if self._reader is not None:
            self._read(held, parts)
            self._close("", content, parts)
        elif not self.num_calls or held:
            content.append(self._space + held)
        return "".join(content), parts

    def _read(self, text: str, parts: list[CallPart]) -> None:
        if self._reader is not None and text:
            found, _ = self._reader.push(text)
            self._is_call = self._is_call or bool(found)
            self.num_calls += _num_begun(found)
            parts += found

    def _close(self, end: str, content: list[str], parts: list[CallPart]) -> None:
        body = "" if self._reader is None else self._reader.text
        self._reader = None
        if self._is_call:
            return
        call = _read_call(_parse(body), self._names)
        if call is None:
            content.append(_CALL + body + end)
        else:
            self.num_calls += 1
            parts.append(call)

    def _without_trailing_space(self, text: str) -> str:
        kept = text.rstrip()
        out = self._space + kept if kept else ""
        self._space = text[len(kept) :] if kept else self._space + text
        if len(self._space) > _MAX_SPACE:
            out, self._space = out + self._space, ""
        return out


class JsonCalls:
    """Tool calls as Llama 3 writes them, or as a list that a grammar forced: an answer that is
    JSON from its first character on. What is no call from its beginning is read at its end."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._between = ""  # what stands before the value being read
        self._reader: _CallReader | None = None
        self._is_content = False
        self.num_calls = 0

    def push(self, text: str) -> tuple[str, list[CallPart]]:
        """The content and the pieces of calls that `text` adds: none while it may be either."""
        parts: list[CallPart] = []
        rest: str | None = text
        while rest and not self._is_content:
            if self._reader is None:
                rest = self._begin(rest)
                continue
            found, rest = self._reader.push(rest)
            parts += found
            self.num_calls += _num_begun(found)
            if rest is not None:
                self._reader, self._between = None, ""
        return rest or "", parts

    def finish(self) -> tuple[str, list[CallPart]]:
        """The calls in what was held back, or its text if it is none."""
        held = "" if self._reader is None else self._reader.text
        text = self._between + held
        if self._is_content or not held:
            return ("" if self.num_calls else text), []
        parts: list[CallPart] = []
        for value in _parse_several(text.strip(_SEPARATORS) if self.num_calls else text):
            for each in value if isinstance(value, list) else [value]:
                call = _read_call(each, self._names)
                if call is None:
                    return text, []
                parts.append(call)
        self.num_calls += len(parts)
        return ("" if parts else text), parts

    def _begin(self, text: str) -> str:
        """Find the next value: returns the text from it on, all of it if it is content."""
        before = self._between + text
        begun = before.lstrip(_SEPARATORS if self.num_calls else None)
        self._between = "" if self.num_calls else before[: len(before) - len(begun)]
        if begun.startswith(("{", "[")):
            self._reader = _CallReader(self._names)
        elif begun or len(self._between) > _MAX_SPACE:
            self._is_content = True
            return self._between + begun
        return begun


def _num_begun(parts: Iterable[CallPart]) -> int:
    return sum(part.name is not None for part in parts)


def _read_call(value: Any, names: Collection[str]) -> CallPart | None:
    if not isinstance(value, dict) or value.get("name") not in names:
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):  # some models encode them twice
        arguments = _parse(arguments)
    if not isinstance(arguments, dict):
        return None
    return CallPart(value["name"], json.dumps(arguments, ensure_ascii=False))


def _refuse(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


_DECODER = json.JSONDecoder(parse_constant=_refuse)


def _parse(text: str) -> Any:
    try:
        return _DECODER.decode(text)
    except (ValueError, RecursionError):
        return None


def _parse_several(text: str) -> list[Any]:
    """JSON values with white space or semicolons between them; none if it is anything else."""
    values: list[Any] = []
    position = 0
    try:
        while position < len(text):
            if text[position] in " \t\r\n;":
                position += 1
                continue
            value, position = _DECODER.raw_decode(text, position)
            values.append(value)
    except (ValueError, RecursionError):
        return []
    return values
