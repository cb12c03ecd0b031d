"""POST /v1/messages: Anthropic's API as a thin layer over chat."""

import json
from collections.abc import AsyncGenerator, Iterator
from dataclasses import dataclass, field
from typing import Any

from msgspec import Struct

from lite_llama.server.chat import Answer, Delta, answer
from lite_llama.server.http import fresh_id, named_event
from lite_llama.server.problems import Problem
from lite_llama.server.protocol import (
    CalledFunction,
    CalledTool,
    ChatMessage,
    ChatRequest,
    Function,
    FunctionName,
    NamedTool,
    Tool,
)
from lite_llama.server.service import Caller, Service
from lite_llama.text.tags import CallPart, read_arguments


class Block(Struct, kw_only=True):
    """A piece of a message."""

    type: str
    text: str | None = None
    id: str | None = None
    name: str | None = None
    input: dict[str, Any] | None = None
    tool_use_id: str | None = None
    content: str | list["Block"] | None = None


class Turn(Struct):
    """A message of the conversation."""

    role: str
    content: str | list[Block]


class InputTool(Struct):
    """A tool on offer."""

    name: str
    description: str | None = None
    input_schema: dict[str, Any] | None = None
    type: str | None = None


class Choice(Struct):
    """Whether, and which, tool must be used."""

    type: str
    name: str | None = None
    disable_parallel_tool_use: bool | None = None


class MessagesRequest(Struct, kw_only=True):
    """POST /v1/messages."""

    model: str | None = None
    messages: list[Turn] | None = None
    max_tokens: int | None = None
    system: str | list[Block] | None = None
    stream: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    stop_sequences: list[str] | None = None
    tools: list[InputTool] | None = None
    tool_choice: Choice | None = None
    metadata: dict[str, str] | None = None


_CHOICES = {"auto": "auto", "any": "required", "none": "none"}


def to_chat(request: MessagesRequest) -> ChatRequest:
    """The same request as a chat; Problem names what is missing or not text."""
    if request.max_tokens is None:
        raise Problem(400, "max_tokens is missing", "max_tokens")
    messages = []
    if request.system is not None:
        messages.append(ChatMessage(role="system", content=_text(request.system, "system")))
    for turn in request.messages or ():
        messages += _turn(turn)
    choice = request.tool_choice
    return ChatRequest(
        messages=messages,
        max_tokens=request.max_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        top_k=request.top_k,
        stop=request.stop_sequences,
        tools=[_tool(tool) for tool in request.tools or ()],
        tool_choice=_choice(choice),
        parallel_tool_calls=not choice.disable_parallel_tool_use if choice else None,
        metadata=request.metadata,
    )


def _turn(turn: Turn) -> Iterator[ChatMessage]:
    """A turn as chat messages: what tools returned comes first, as messages of their own."""
    if turn.role not in ("user", "assistant"):
        raise Problem(400, "a message's role is neither user nor assistant", "messages")
    blocks = [Block(type="text", text=turn.content)] if isinstance(turn.content, str) else None
    blocks = turn.content if blocks is None and isinstance(turn.content, list) else blocks or []
    for block in blocks:
        if block.type == "tool_result":
            yield ChatMessage(
                role="tool",
                content=_text(block.content or "", "messages"),
                tool_call_id=block.tool_use_id or "",
            )
    calls = [_called(block) for block in blocks if block.type == "tool_use"]
    rest = [
        block
        for block in blocks
        if block.type not in ("tool_use", "tool_result", "thinking", "redacted_thinking")
    ]
    if rest or calls:
        yield ChatMessage(role=turn.role, content=_text(rest, "messages"), tool_calls=calls or None)


def _called(block: Block) -> CalledTool:
    arguments = json.dumps(block.input or {}, ensure_ascii=False)
    return CalledTool(id=block.id, function=CalledFunction(block.name or "", arguments))


def _text(content: str | list[Block], param: str) -> str:
    if isinstance(content, str):
        return content
    if any(block.type != "text" or block.text is None for block in content):
        raise Problem(400, f"{param} has a block that is not text; send text only", param)
    return "".join(block.text or "" for block in content)


def _tool(tool: InputTool) -> Tool:
    if tool.type not in (None, "custom"):
        raise Problem(400, "tools has a built-in tool, which is not implemented", "tools")
    return Tool(type="function", function=Function(tool.name, tool.description, tool.input_schema))


def _choice(choice: Choice | None) -> str | NamedTool | None:
    if choice is None:
        return None
    if choice.type == "tool":
        return NamedTool(type="function", function=FunctionName(choice.name or ""))
    if choice.type not in _CHOICES:
        raise Problem(400, "tool_choice.type is none of auto, any, tool, none", "tool_choice")
    return _CHOICES[choice.type]


@dataclass
class MessagesWriter:
    """Collects the deltas of one answer as content blocks, and says what each adds."""

    service: Service
    request: MessagesRequest
    model: str
    id: str = field(default_factory=lambda: f"msg_{fresh_id()}")
    content: list[dict[str, Any]] = field(default_factory=list)
    end: dict[str, Any] = field(
        default_factory=lambda: {"stop_reason": None, "stop_sequence": None}
    )
    _is_open: bool = False
    _arguments: list[str] = field(default_factory=list)  # of the call being written

    def message(self, under_way: Answer) -> dict[str, Any]:
        """The message object as it is now."""
        return {
            "id": self.id,
            "type": "message",
            "role": "assistant",
            "model": self.model,
            "content": self.content,
            **self.end,
            "usage": self.usage(under_way),
        }

    def usage(self, under_way: Answer) -> dict[str, int]:
        """Anthropic counts cached prompt tokens apart from the others."""
        usage = self.service.usage([under_way.generation])
        cached = usage["prompt_tokens_details"]["cached_tokens"]
        return {
            "input_tokens": usage["prompt_tokens"] - cached,
            "cache_read_input_tokens": cached,
            "cache_creation_input_tokens": 0,
            "output_tokens": usage["completion_tokens"],
        }

    def event(self, kind: str, **fields: Any) -> bytes:
        """One server-sent event."""
        return named_event(kind, {"type": kind, **fields})

    def add(self, delta: Delta, under_way: Answer) -> Iterator[bytes]:
        """Take in a delta; the events that tell of it."""
        if delta.reasoning:
            yield from self._text("thinking", delta.reasoning)
        if delta.content:
            yield from self._text("text", delta.content)
        for part in delta.calls:
            yield from self._call(part)
        if delta.finish_reason is not None:
            self.end = _end(delta.finish_reason, under_way)

    def close_block(self) -> Iterator[bytes]:
        """Complete the block being written, if there is one."""
        if self._is_open:
            self._is_open = False
            yield self.event("content_block_stop", index=len(self.content) - 1)
            if self.content[-1]["type"] == "tool_use":
                self.content[-1]["input"] = read_arguments("".join(self._arguments))

    def _text(self, kind: str, text: str) -> Iterator[bytes]:
        if not self._is_open or self.content[-1]["type"] != kind:
            signature = {"signature": ""} if kind == "thinking" else {}
            yield from self._open({"type": kind, kind: "", **signature})
        self.content[-1][kind] += text
        yield self._delta({"type": f"{kind}_delta", kind: text})

    def _call(self, part: CallPart) -> Iterator[bytes]:
        if part.name is not None:
            block = {"type": "tool_use", "id": f"toolu_{fresh_id()}"}
            yield from self._open({**block, "name": part.name, "input": {}})
            self._arguments = []
        self._arguments.append(part.arguments)
        yield self._delta({"type": "input_json_delta", "partial_json": part.arguments})

    def _open(self, block: dict[str, Any]) -> Iterator[bytes]:
        yield from self.close_block()
        self._is_open = True
        self.content.append(block)
        index = len(self.content) - 1
        yield self.event("content_block_start", index=index, content_block=block)

    def _delta(self, delta: dict[str, Any]) -> bytes:
        return self.event("content_block_delta", index=len(self.content) - 1, delta=delta)


def _end(reason: str, under_way: Answer) -> dict[str, Any]:
    """Anthropic's names for how an answer ended."""
    stopped_by = under_way.generation.completions[0].stop_reason
    if reason == "stop" and isinstance(stopped_by, str):
        return {"stop_reason": "stop_sequence", "stop_sequence": stopped_by}
    names = {"stop": "end_turn", "length": "max_tokens", "tool_calls": "tool_use"}
    return {"stop_reason": names.get(reason, reason), "stop_sequence": None}


async def complete(writer: MessagesWriter, caller: Caller) -> dict[str, Any]:
    """A whole message object."""
    async with answer(writer.service, to_chat(writer.request), caller) as under_way:
        async for delta in under_way.deltas():
            for _ in writer.add(delta, under_way):
                pass
        for _ in writer.close_block():
            pass
        return writer.message(under_way)


async def stream(writer: MessagesWriter, caller: Caller) -> AsyncGenerator[bytes, None]:
    """The events of a streamed message."""
    async with answer(writer.service, to_chat(writer.request), caller) as under_way:
        has_begun = False
        async for delta in under_way.deltas():
            if not has_begun:
                has_begun = True
                yield writer.event("message_start", message=writer.message(under_way))
            for event in writer.add(delta, under_way):
                yield event
        for event in writer.close_block():
            yield event
        usage = writer.usage(under_way)
        yield writer.event("message_delta", delta=writer.end, usage=usage)
        yield writer.event("message_stop")


def error_event(problem: Problem) -> bytes:
    """A problem in the middle of a stream."""
    return named_event("error", problem.envelope())
