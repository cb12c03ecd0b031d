"""What an answer's text is made of: reasoning between think tags, tool calls, and the rest.

Models write these with plain tags, so they are found by scanning, piece by piece and in linear
time. What a model wrote is only ever read as JSON.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, NoReturn

_THINK, _END_THINK = "<think>", "</think>"
_CALL, _END_CALL = "<tool_call>", "</tool_call>"
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
    """A call that the model asks for; `arguments` is a JSON object as text."""

    name: str
    arguments: str


class TaggedCalls:
    """Tool calls as Qwen and Hermes models write them: JSON between <tool_call> tags."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._finder = TagFinder(_CALL)
        self._body: list[str] | None = None  # of the call being read
        self._space = ""  # before a tag, it is part of the tag
        self.num_calls = 0

    def push(self, text: str) -> tuple[str, list[ToolCall]]:
        """The content and the complete calls that `text` adds."""
        content: list[str] = []
        calls: list[ToolCall] = []
        rest: str | None = text
        while rest is not None:
            before, rest = self._finder.push(rest)
            if self._body is None:
                content.append(self._without_trailing_space(before))
                if rest is not None:
                    self._space, self._body, self._finder = "", [], TagFinder(_END_CALL)
                continue
            self._body.append(before)
            if rest is not None:
                self._close("".join(self._body), _END_CALL, content, calls)
                self._body, self._finder = None, TagFinder(_CALL)
        return "".join(content), calls

    def finish(self) -> tuple[str, list[ToolCall]]:
        """The content and calls in what was held back."""
        content: list[str] = []
        calls: list[ToolCall] = []
        held = self._finder.finish()
        if self._body is not None:
            self._close("".join(self._body) + held, "", content, calls)
        elif not self.num_calls or held:
            content.append(self._space + held)
        return "".join(content), calls

    def _close(self, body: str, end: str, content: list[str], calls: list[ToolCall]) -> None:
        call = _read_call(_parse(body), self._names)
        if call is None:
            content.append(_CALL + body + end)
        else:
            self.num_calls += 1
            calls.append(call)

    def _without_trailing_space(self, text: str) -> str:
        kept = text.rstrip()
        out = self._space + kept if kept else ""
        self._space = text[len(kept) :] if kept else self._space + text
        if len(self._space) > _MAX_SPACE:
            out, self._space = out + self._space, ""
        return out


class JsonCalls:
    """Tool calls as Llama 3 writes them, or as a list that a grammar forced: an answer that is
    JSON from its first character on. It is complete, and read, only at its end."""

    def __init__(self, names: Collection[str]) -> None:
        self._names = names
        self._held: list[str] | None = []
        self.num_calls = 0

    def push(self, text: str) -> tuple[str, list[ToolCall]]:
        """The content that `text` adds: nothing while it may be a call."""
        if self._held is None:
            return text, []
        self._held.append(text)
        if len(self._held) == 1 or not self._held[0].strip():
            begun = "".join(self._held)
            self._held = [begun]
            start = begun.lstrip()[:1]
            if start not in "{[" or (not start and len(begun) > _MAX_SPACE):
                self._held = None
                return begun, []
        return "", []

    def finish(self) -> tuple[str, list[ToolCall]]:
        """The calls, or the text if it is none."""
        text = "".join(self._held or ())
        calls: list[ToolCall] = []
        for value in _parse_several(text):
            for each in value if isinstance(value, list) else [value]:
                call = _read_call(each, self._names)
                if call is None:
                    return text, []
                calls.append(call)
        self.num_calls = len(calls)
        return ("" if calls else text), calls


def _read_call(value: Any, names: Collection[str]) -> ToolCall | None:
    if not isinstance(value, dict) or value.get("name") not in names:
        return None
    arguments = value.get("arguments", value.get("parameters", {}))
    if isinstance(arguments, str):  # some models encode them twice
        arguments = _parse(arguments)
    if not isinstance(arguments, dict):
        return None
    return ToolCall(value["name"], json.dumps(arguments, ensure_ascii=False))


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
