"""POST /v1/responses: OpenAI's newer API, stateless, as a thin layer over chat."""

from collections.abc import AsyncGenerator, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from msgspec import Struct

from lite_llama.server.chat import Answer, Delta, answer, call_id
from lite_llama.server.http import fresh_id, named_event
from lite_llama.server.problems import Problem
from lite_llama.server.protocol import (
    CalledFunction,
    CalledTool,
    ChatMessage,
    ChatRequest,
    Function,
    FunctionName,
    JsonSchema,
    NamedTool,
    Part,
    ResponseFormat,
    Tool,
)
from lite_llama.server.service import Caller, Service
from lite_llama.text.tags import CallPart


class FlatTool(Struct):
    """A function on offer, not nested as chat nests it."""

    type: str
    name: str | None = None
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class FlatChoice(Struct):
    """A tool_choice that asks for one function."""

    type: str
    name: str | None = None


class TextFormat(Struct):
    """The form of the answer."""

    type: str
    name: str | None = None
    schema: dict[str, Any] | None = None
    description: str | None = None
    strict: bool | None = None


class TextOptions(Struct):
    """The `text` field."""

    format: TextFormat | None = None


class Item(Struct, kw_only=True):
    """One entry of `input`: a message, an earlier call, or what a call returned."""

    type: str | None = None
    role: str | None = None
    content: str | list[Part] | None = None
    call_id: str | None = None
    name: str | None = None
    arguments: str | None = None
    output: str | None = None


class ResponsesRequest(Struct, kw_only=True):
    """POST /v1/responses."""

    model: str | None = None
    input: str | list[Item] | None = None
    instructions: str | None = None
    max_output_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    stream: bool | None = None
    tools: list[FlatTool] | None = None
    tool_choice: str | FlatChoice | None = None
    parallel_tool_calls: bool | None = None
    text: TextOptions | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None
    previous_response_id: str | None = None
    background: bool | None = None
    store: bool | None = None


def to_chat(request: ResponsesRequest) -> ChatRequest:
    """The same request as a chat; Problem for what needs a server that remembers."""
    if request.previous_response_id is not None:
        raise Problem(
            400,
            "previous_response_id is not implemented: no answer is kept; send the whole input",
            "previous_response_id",
        )
    if request.background:
        raise Problem(400, "background is not implemented; leave it out", "background")
    if request.input is None:
        raise Problem(400, "input is missing", "input")
    messages = []
    if request.instructions is not None:
        messages.append(ChatMessage(role="system", content=request.instructions))
    if isinstance(request.input, str):
        messages.append(ChatMessage(role="user", content=request.input))
    else:
        messages += _messages(request.input)
    return ChatRequest(
        messages=messages,
        max_completion_tokens=request.max_output_tokens,
        temperature=request.temperature,
        top_p=request.top_p,
        tools=[_tool(tool) for tool in request.tools or ()],
        tool_choice=_choice(request.tool_choice),
        parallel_tool_calls=request.parallel_tool_calls,
        response_format=_format(request.text),
        user=request.user,
        metadata=request.metadata,
    )


def _messages(items: Iterable[Item]) -> Iterator[ChatMessage]:
    for number, item in enumerate(items):
        if item.type in (None, "message") and item.role is not None:
            yield ChatMessage(role=item.role, content=item.content)
        elif item.type == "function_call":
            called = CalledFunction(name=item.name or "", arguments=item.arguments or "{}")
            call = CalledTool(id=item.call_id, function=called)
            yield ChatMessage(role="assistant", tool_calls=[call])
        elif item.type == "function_call_output":
            yield ChatMessage(
                role="tool", content=item.output or "", tool_call_id=item.call_id or ""
            )
        elif item.type != "reasoning":  # what a model thought before is not shown to it again
            raise Problem(400, f"input[{number}] is of a type that is not implemented", "input")


def _tool(tool: FlatTool) -> Tool:
    if tool.type != "function" or tool.name is None:
        raise Problem(400, "tools has an entry that is not a function with a name", "tools")
    function = Function(name=tool.name, description=tool.description, parameters=tool.parameters)
    return Tool(type="function", function=function)


def _choice(choice: str | FlatChoice | None) -> str | NamedTool | None:
    if not isinstance(choice, FlatChoice):
        return choice
    return NamedTool(type=choice.type, function=FunctionName(name=choice.name or ""))


def _format(text: TextOptions | None) -> ResponseFormat | None:
    form = None if text is None else text.format
    if form is None:
        return None
    return ResponseFormat(type=form.type, json_schema=JsonSchema(schema=form.schema))


@dataclass
class ResponsesWriter:
    """Collects the deltas of one answer as output items, and says what each adds."""

    service: Service
    request: ResponsesRequest
    model: str
    id: str = field(default_factory=lambda: f"resp_{fresh_id()}")
    output: list[dict[str, Any]] = field(default_factory=list)
    _created: int = 0
    _is_open: bool = False
    _number: int = -1

    def __post_init__(self) -> None:
        self._created = self.service.now()

    def response(self, status: str, under_way: Answer | None = None) -> dict[str, Any]:
        """The response object as it is now."""
        request = self.request
        return {
            "id": self.id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": (
                {"reason": "max_output_tokens"} if status == "incomplete" else None
            ),
            "instructions": request.instructions,
            "max_output_tokens": request.max_output_tokens,
            "metadata": request.metadata or {},
            "model": self.model,
            "output": self.output,
            "parallel_tool_calls": request.parallel_tool_calls is not False,
            "previous_response_id": None,
            "store": False,
            "temperature": request.temperature,
            "text": request.text or {"format": {"type": "text"}},
            "tool_choice": request.tool_choice or "auto",
            "tools": request.tools or [],
            "top_p": request.top_p,
            "usage": None if under_way is None else self._usage(under_way),
        }

    def event(self, kind: str, **fields: Any) -> bytes:
        """One server-sent event."""
        self._number += 1
        return named_event(kind, {"type": kind, "sequence_number": self._number, **fields})

    def add(self, delta: Delta) -> Iterator[bytes]:
        """Take in a delta; the events that tell of it."""
        if delta.reasoning:
            yield from self._text("reasoning", "reasoning_text", delta.reasoning)
        if delta.content:
            yield from self._text("message", "output_text", delta.content)
        for part in delta.calls:
            yield from self._call(part)

    def close_item(self) -> Iterator[bytes]:
        """Complete the item being written, if there is one."""
        if not self._is_open:
            return
        self._is_open = False
        item = self.output[-1]
        item["status"] = "completed"
        if item["type"] == "function_call":
            said = {name: item[name] for name in ("arguments", "name")}
            yield self.event("response.function_call_arguments.done", **said, **self._item_place())
        else:
            [part] = item["content"]
            said = {"text": part["text"], "logprobs": []}
            yield self.event(f"response.{part['type']}.done", **said, **self._place())
            yield self.event("response.content_part.done", part=part, **self._place())
        yield self.event("response.output_item.done", output_index=len(self.output) - 1, item=item)

    def _text(self, kind: str, part_kind: str, text: str) -> Iterator[bytes]:
        if not self._is_open or self.output[-1]["type"] != kind:
            yield from self.close_item()
            yield from self._open(kind, part_kind)
        self.output[-1]["content"][0]["text"] += text
        yield self.event(f"response.{part_kind}.delta", delta=text, logprobs=[], **self._place())

    def _open(self, kind: str, part_kind: str) -> Iterator[bytes]:
        self._is_open = True
        item: dict[str, Any] = {"id": f"item_{fresh_id()}", "type": kind}
        item["status"] = "in_progress"
        if kind == "message":
            item["role"] = "assistant"
        else:
            item["summary"] = []
        item["content"] = []
        self.output.append(item)
        yield self.event("response.output_item.added", output_index=len(self.output) - 1, item=item)
        part: dict[str, Any] = {"type": part_kind, "text": ""}
        if kind == "message":
            part |= {"annotations": [], "logprobs": []}
        item["content"].append(part)
        yield self.event("response.content_part.added", part=part, **self._place())

    def _call(self, part: CallPart) -> Iterator[bytes]:
        if part.name is not None:
            yield from self.close_item()
            self._is_open = True
            item = {"id": f"fc_{fresh_id()}", "type": "function_call"}
            item |= {"call_id": call_id(), "name": part.name, "arguments": ""}
            self.output.append(item | {"status": "in_progress"})
            yield self.event(
                "response.output_item.added",
                output_index=len(self.output) - 1,
                item=self.output[-1],
            )
        self.output[-1]["arguments"] += part.arguments
        kind = "response.function_call_arguments.delta"
        yield self.event(kind, delta=part.arguments, **self._item_place())

    def _item_place(self) -> dict[str, Any]:
        return {"output_index": len(self.output) - 1, "item_id": self.output[-1]["id"]}

    def _place(self) -> dict[str, Any]:
        return {"content_index": 0, **self._item_place()}

    def _usage(self, under_way: Answer) -> dict[str, Any]:
        usage = self.service.usage([under_way.generation])
        return {
            "input_tokens": usage["prompt_tokens"],
            "input_tokens_details": usage["prompt_tokens_details"],
            "output_tokens": usage["completion_tokens"],
            "output_tokens_details": {"reasoning_tokens": 0},
            "total_tokens": usage["total_tokens"],
        }


def _status(delta: Delta) -> str:
    return "incomplete" if delta.finish_reason == "length" else "completed"


async def complete(writer: ResponsesWriter, caller: Caller) -> dict[str, Any]:
    """A whole response object."""
    async with answer(writer.service, to_chat(writer.request), caller) as under_way:
        status = "completed"
        async for delta in under_way.deltas():
            for _ in writer.add(delta):
                pass
            status = _status(delta)
        for _ in writer.close_item():
            pass
        return writer.response(status, under_way)


async def stream(writer: ResponsesWriter, caller: Caller) -> AsyncGenerator[bytes, None]:
    """The events of a streamed response."""
    async with answer(writer.service, to_chat(writer.request), caller) as under_way:
        status, has_begun = "completed", False
        async for delta in under_way.deltas():
            if not has_begun:
                has_begun = True
                for kind in ("response.created", "response.in_progress"):
                    yield writer.event(kind, response=writer.response("in_progress"))
            for event in writer.add(delta):
                yield event
            status = _status(delta)
        for event in writer.close_item():
            yield event
        yield writer.event(f"response.{status}", response=writer.response(status, under_way))
