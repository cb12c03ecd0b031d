"""Chat: a request's messages to deltas of reasoning, content and tool calls.

`answer` is what /v1/chat/completions, /v1/responses and /v1/messages share; the rest of this
module writes its deltas the way OpenAI's chat API does.
"""

import itertools
import json
from collections.abc import AsyncGenerator, AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, Literal

from lite_llama.completion import TextChunk
from lite_llama.engine.request import TokenLogprobs
from lite_llama.errors import RequestError
from lite_llama.server import logprobs
from lite_llama.server.async_engine import Generation
from lite_llama.server.http import choice_prefix, data_event, encode, fresh_id
from lite_llama.server.problems import Problem, refused
from lite_llama.server.protocol import (
    MAX_MESSAGES,
    MAX_PARTS,
    MAX_TOOLS,
    ChatMessage,
    ChatRequest,
    GenerationFields,
    NamedTool,
    TokenizeRequest,
    Tool,
    sampling_params,
)
from lite_llama.server.service import Caller, Service
from lite_llama.text.grammar import GrammarSpec, json_schema_spec, regex_spec
from lite_llama.text.tags import (
    CallPart,
    JsonCalls,
    ReasoningSplitter,
    TaggedCalls,
    ToolCall,
    join_calls,
)

_ROLES = ("system", "developer", "user", "assistant", "tool")
_MAX_KWARGS_BYTES, _MAX_KWARGS_DEPTH = 16 << 10, 16
# Arguments of the rendering function, not variables of a template.
_KWARGS_DENIED = frozenset(
    {"chat_template", "conversation", "tokenize", "padding", "truncation", "max_length"}
    | {"return_tensors", "return_dict", "tokenizer_kwargs", "continue_final_message"}
    | {"return_assistant_tokens_mask", "documents", "messages", "tools", "self"}
    | {"add_generation_prompt"}
)


@dataclass
class Delta:
    """What one step adds to one choice."""

    index: int
    content: str = ""
    reasoning: str = ""
    calls: list[CallPart] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: str | None = None

    @property
    def says_something(self) -> bool:
        """Whether a client would miss it."""
        return bool(
            self.content or self.reasoning or self.calls or self.logprobs or self.finish_reason
        )


class _Reader:
    """Turns the chunks of one choice into deltas."""

    def __init__(
        self, splitter: ReasoningSplitter | None, calls: TaggedCalls | JsonCalls | None
    ) -> None:
        self._splitter = splitter
        self._calls = calls

    def read(self, chunk: TextChunk) -> Delta:
        delta = Delta(chunk.index, content=chunk.text)
        ended = chunk.finish_reason is not None
        if self._splitter is not None:
            delta.reasoning, delta.content = self._splitter.push(chunk.text)
            if ended:
                reasoning, content = self._splitter.finish()
                delta.reasoning += reasoning
                delta.content += content
        if self._calls is not None:
            delta.content, delta.calls = self._calls.push(delta.content)
            if ended:
                content, calls = self._calls.finish()
                delta.content += content
                delta.calls += calls
        delta.logprobs += chunk.logprobs
        if ended:
            called = self._calls is not None and self._calls.num_calls > 0
            delta.finish_reason = (
                "tool_calls" if called and chunk.finish_reason == "stop" else chunk.finish_reason
            )
        return delta


@dataclass
class Answer:
    """An answer under way: iterate over `deltas`."""

    generation: Generation
    readers: list[_Reader]

    async def deltas(self) -> AsyncIterator[Delta]:
        """Every delta that says something, in order."""
        async for chunks in self.generation:
            for chunk in chunks:
                delta = self.readers[chunk.index].read(chunk)
                if delta.says_something:
                    yield delta


@asynccontextmanager
async def answer(service: Service, request: ChatRequest, caller: Caller) -> AsyncIterator[Answer]:
    """Admit, check, render and queue a request; leaving the context gives up what still runs."""
    params = sampling_params(request, service.defaults)
    service.check_max_tokens(request, params, 0)
    messages = read_messages(request)
    tools = _tools_on_offer(request)
    options = _template_options(request)
    service.check_bytes(_num_bytes(messages), "messages")
    with service.engine.reserve(params.n):
        spec = _grammar_spec(request, tools)
        listed = [_as_json(tool) for tool in tools] or None
        token_ids = await service.render(messages, listed, options)
        service.check_max_tokens(request, params, len(token_ids))
        generation = service.submit(token_ids, params, request, caller, spec)
        try:
            readers = [_reader(service, request, tools, token_ids, spec) for _ in range(params.n)]
            yield Answer(generation, readers)
        finally:
            generation.close()


async def tokenize(service: Service, request: TokenizeRequest) -> list[int]:
    """The token ids that a conversation has for the model."""
    chat = ChatRequest(
        messages=request.messages,
        tools=request.tools,
        chat_template_kwargs=request.chat_template_kwargs,
    )
    messages = read_messages(chat)
    tools = [_as_json(tool) for tool in _tools_on_offer(chat)] or None
    options = _template_options(chat)
    if request.add_generation_prompt is not None:
        options = {**options, "add_generation_prompt": request.add_generation_prompt}
    service.check_bytes(_num_bytes(messages), "messages")
    return await service.render(messages, tools, options)


def read_messages(request: ChatRequest) -> list[dict[str, Any]]:
    """Messages as a template reads them: text content, arguments as objects."""
    messages = request.messages
    if not messages:
        raise Problem(400, "messages is empty; give at least one", "messages")
    if len(messages) > MAX_MESSAGES:
        raise Problem(
            400, f"messages has {len(messages)} entries, limit {MAX_MESSAGES}", "messages"
        )
    return [_read_message(message, f"messages[{i}]") for i, message in enumerate(messages)]


def _read_message(message: ChatMessage, where: str) -> dict[str, Any]:
    if message.role not in _ROLES:
        raise Problem(
            400,
            f"{where}.role is {message.role[:40]!r}, expected one of {', '.join(_ROLES)}",
            "messages",
        )
    role = "system" if message.role == "developer" else message.role
    read: dict[str, Any] = {"role": role, "content": _read_content(message, where)}
    if message.tool_calls:
        read["tool_calls"] = [
            {
                "id": call.id or "",
                "type": "function",
                "function": {
                    "name": call.function.name,
                    "arguments": _read_arguments(call.function.arguments, where),
                },
            }
            for call in message.tool_calls
        ]
    elif message.content is None and role != "assistant":
        raise Problem(400, f"{where}.content is missing", "messages")
    for name in ("name", "tool_call_id", "reasoning_content"):
        if (value := getattr(message, name)) is not None:
            read[name] = value
    return read


def _read_content(message: ChatMessage, where: str) -> str:
    if message.content is None or isinstance(message.content, str):
        return message.content or ""
    if len(message.content) > MAX_PARTS:
        raise Problem(
            400, f"{where}.content has {len(message.content)} parts, limit {MAX_PARTS}", "messages"
        )
    for part in message.content:
        if part.type not in ("text", "input_text", "output_text") or part.text is None:
            raise Problem(
                400, f"{where}.content has a part that is not text; send text only", "messages"
            )
    return "".join(part.text or "" for part in message.content)


def _read_arguments(text: str, where: str) -> dict[str, Any]:
    try:
        arguments = json.loads(text or "{}")
    except (ValueError, RecursionError):
        arguments = None
    if not isinstance(arguments, dict):
        raise Problem(400, f"{where}.tool_calls has arguments that are no JSON object", "messages")
    return arguments


def _num_bytes(messages: Iterable[dict[str, Any]]) -> int:
    return sum(len(str(message["content"]).encode()) for message in messages)


def _as_json(tool: Tool) -> dict[str, Any]:
    function: dict[str, Any] = {"name": tool.function.name}
    if tool.function.description is not None:
        function["description"] = tool.function.description
    function["parameters"] = tool.function.parameters or {"type": "object", "properties": {}}
    return {"type": "function", "function": function}


def _tools_on_offer(request: ChatRequest) -> list[Tool]:
    """The tools that the model may call; none if tool_choice is `none`."""
    tools = request.tools or []
    if len(tools) > MAX_TOOLS:
        raise Problem(400, f"tools has {len(tools)} entries, limit {MAX_TOOLS}", "tools")
    for tool in tools:
        name = tool.function.name
        if tool.type != "function":
            raise Problem(400, "tools has a type other than 'function'", "tools")
        if not 0 < len(name) <= 64 or not name.replace("-", "_").replace(".", "_").isidentifier():
            raise Problem(
                400, "a tool's name is not 1 to 64 letters, digits, '_', '-' or '.'", "tools"
            )
    choice = request.tool_choice
    if isinstance(choice, NamedTool):
        chosen = [tool for tool in tools if tool.function.name == choice.function.name]
        if choice.type != "function" or not chosen:
            raise Problem(400, "tool_choice names a function that is not in tools", "tool_choice")
        return chosen
    if choice not in (None, "none", "auto", "required"):
        raise Problem(
            400,
            f"tool_choice is {choice[:40]!r}, expected none, auto, required or a function",
            "tool_choice",
        )
    if choice == "required" and not tools:
        raise Problem(400, "tool_choice is 'required', but there are no tools", "tool_choice")
    return [] if choice == "none" else tools


def _must_call(request: ChatRequest) -> bool:
    return request.tool_choice == "required" or isinstance(request.tool_choice, NamedTool)


def _template_options(request: ChatRequest) -> dict[str, Any]:
    options = request.chat_template_kwargs or {}
    for name in options:
        if name in _KWARGS_DENIED:
            raise Problem(
                400,
                f"chat_template_kwargs cannot set {name!r}; leave it out",
                "chat_template_kwargs",
            )
    size = len(json.dumps(options))
    if size > _MAX_KWARGS_BYTES or _depth(options) > _MAX_KWARGS_DEPTH:
        raise Problem(
            400,
            f"chat_template_kwargs has {size} bytes, limit {_MAX_KWARGS_BYTES}, and at most "
            f"{_MAX_KWARGS_DEPTH} levels",
            "chat_template_kwargs",
        )
    return options


def _depth(value: Any) -> int:
    """Levels of nesting; the body's own bound keeps the recursion shallow."""
    if isinstance(value, dict):
        value = list(value.values())
    if not isinstance(value, list):
        return 0
    return 1 + max(map(_depth, value), default=0)


def _grammar_spec(request: ChatRequest, tools: list[Tool]) -> GrammarSpec | None:
    spec = format_spec(request)
    if not _must_call(request):
        return spec
    if spec is not None:
        raise Problem(
            400, "tool_choice and response_format or regex ask for different forms", "tool_choice"
        )
    try:
        return json_schema_spec(_calls_schema(request, tools), "tools")
    except RequestError as error:
        raise refused(error) from None


def format_spec(request: GenerationFields) -> GrammarSpec | None:
    """What response_format or regex asks of the answer's form."""
    form = request.response_format
    try:
        if request.regex is not None:
            if form is not None and form.type != "text":
                raise Problem(400, "regex and response_format exclude each other", "regex")
            return regex_spec(request.regex, "regex")
        if form is None or form.type == "text":
            return None
        if form.type == "json_object":
            return json_schema_spec({"type": "object"}, "response_format")
        if form.type == "json_schema":
            if form.json_schema is None or form.json_schema.schema is None:
                raise Problem(
                    400, "response_format.json_schema.schema is missing", "response_format"
                )
            return json_schema_spec(form.json_schema.schema, "response_format")
    except RequestError as error:
        raise refused(error) from None
    raise Problem(
        400,
        f"response_format.type is {form.type[:40]!r}, expected text, json_object or json_schema",
        "response_format",
    )


def _calls_schema(request: ChatRequest, tools: list[Tool]) -> dict[str, Any]:
    """A list of calls; the schemas' own definitions move to the root, where $ref finds them."""
    definitions: dict[str, Any] = {}
    variants = []
    for tool in tools:
        parameters = dict(tool.function.parameters or {"type": "object", "properties": {}})
        for key in ("$defs", "definitions"):
            if key in parameters:
                definitions.setdefault(key, {}).update(parameters.pop(key))
        variants.append(
            {
                "type": "object",
                "properties": {"name": {"const": tool.function.name}, "arguments": parameters},
                "required": ["name", "arguments"],
                "additionalProperties": False,
            }
        )
    only_one = isinstance(request.tool_choice, NamedTool) or request.parallel_tool_calls is False
    return {
        "type": "array",
        "minItems": 1,
        "maxItems": 1 if only_one else 8,
        "items": variants[0] if len(variants) == 1 else {"anyOf": variants},
        **definitions,
    }


def _reader(
    service: Service,
    request: ChatRequest,
    tools: list[Tool],
    token_ids: list[int],
    spec: GrammarSpec | None,
) -> _Reader:
    template = service.template
    names = {tool.function.name for tool in tools}
    if spec is not None:
        return _Reader(None, JsonCalls(names) if _must_call(request) else None)
    calls: TaggedCalls | JsonCalls | None = None
    if names:
        calls = TaggedCalls(names) if "<tool_call>" in template else JsonCalls(names)
    splitter = None
    if "</think>" in template:
        tail = service.text.tokenizer.decode(token_ids[-8:], skip_special_tokens=False)
        splitter = ReasoningSplitter(inside=tail.rstrip().endswith("<think>"))
    return _Reader(splitter, calls)


# --- OpenAI's chat format


@dataclass
class ChatWriter:
    """Writes answers as chat.completion objects and chunks."""

    service: Service
    request: ChatRequest
    model: str
    id: str = field(default_factory=lambda: f"chatcmpl-{fresh_id()}")
    created: int = field(init=False)
    _prefix: bytes = field(init=False)  # of an event with one choice

    def __post_init__(self) -> None:
        self.created = self.service.now()
        self._prefix = choice_prefix(self.base("chat.completion.chunk"))

    def base(self, kind: Literal["chat.completion", "chat.completion.chunk"]) -> dict[str, Any]:
        """The fields that every object has."""
        return {"id": self.id, "object": kind, "created": self.created, "model": self.model}

    def text_event(self, index: int, text: str) -> bytes:
        """`chunk` of a text without log-probabilities, in half its time."""
        written = self._prefix, index, encode(text)
        return b'%b%d,"delta":{"content":%b},"finish_reason":null}]}\n\n' % written

    def chunk(
        self, index: int, delta: dict[str, Any], end: str | None, described: Any = None
    ) -> bytes:
        """One event of a stream."""
        choice = {"index": index, "delta": delta, "finish_reason": end}
        if self.request.logprobs:
            choice["logprobs"] = described
        return data_event({**self.base("chat.completion.chunk"), "choices": [choice]})

    def described(self, rows: list[TokenLogprobs]) -> dict[str, Any] | None:
        """The logprobs object of some tokens."""
        if not self.request.logprobs:
            return None
        tokenizer = self.service.text.tokenizer
        return {"content": [logprobs.chat_entry(tokenizer, row) for row in rows], "refusal": None}


async def stream(writer: ChatWriter, caller: Caller) -> AsyncGenerator[bytes, None]:
    """The events of a streamed chat completion, [DONE] included."""
    request, service = writer.request, writer.service
    async with answer(service, request, caller) as under_way:
        num_calls = [0] * len(under_way.readers)
        opened: set[int] = set()
        async for delta in under_way.deltas():
            events = _delta_events(writer, delta, num_calls)
            if delta.index not in opened:
                opened.add(delta.index)
                opening = writer.chunk(delta.index, {"role": "assistant", "content": ""}, None)
                events = itertools.chain((opening,), events)
            yield b"".join(events)
        if request.stream_options is not None and request.stream_options.include_usage:
            usage = service.usage([under_way.generation])
            yield data_event(
                {**writer.base("chat.completion.chunk"), "choices": [], "usage": usage}
            )
    yield b"data: [DONE]\n\n"


def _delta_events(writer: ChatWriter, delta: Delta, num_calls: list[int]) -> Iterable[bytes]:
    fields: dict[str, Any] = {}
    if delta.content and not delta.reasoning and not writer.request.logprobs:
        yield writer.text_event(delta.index, delta.content)
    elif delta.content:
        fields["content"] = delta.content
    if delta.reasoning:
        fields["reasoning_content"] = fields["reasoning"] = delta.reasoning
    described = writer.described(delta.logprobs) if delta.logprobs else None
    if fields or described:
        yield writer.chunk(delta.index, fields, None, described)
    for part in delta.calls:
        if part.name is not None:
            function = {"name": part.name, "arguments": ""}
            opening = {"index": num_calls[delta.index], "id": call_id(), "type": "function"}
            yield writer.chunk(
                delta.index, {"tool_calls": [opening | {"function": function}]}, None
            )
            num_calls[delta.index] += 1
        arguments = {"arguments": part.arguments}
        further = {"index": num_calls[delta.index] - 1, "function": arguments}
        yield writer.chunk(delta.index, {"tool_calls": [further]}, None)
    if delta.finish_reason is not None:
        yield writer.chunk(delta.index, {}, delta.finish_reason)


def call_id() -> str:
    """A fresh id of a tool call."""
    return f"call_{fresh_id()}"


@dataclass
class Gathered:
    """One choice, complete."""

    content: str = ""
    reasoning: str = ""
    calls: list[ToolCall] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    finish_reason: str | None = None


async def gather(under_way: Answer) -> list[Gathered]:
    """Every choice of an answer, when it has ended."""
    parts: list[tuple[list[str], list[str], list[CallPart]]] = [
        ([], [], []) for _ in under_way.readers
    ]
    choices = [Gathered() for _ in under_way.readers]
    under_way.generation.wait_for_end()
    async for delta in under_way.deltas():
        choice = choices[delta.index]
        parts[delta.index][0].append(delta.content)
        parts[delta.index][1].append(delta.reasoning)
        parts[delta.index][2].extend(delta.calls)
        choice.logprobs += delta.logprobs
        choice.finish_reason = delta.finish_reason
    for choice, (content, reasoning, calls) in zip(choices, parts, strict=True):
        choice.content, choice.reasoning = "".join(content), "".join(reasoning)
        choice.calls = join_calls(calls)
    return choices


async def complete(writer: ChatWriter, caller: Caller) -> dict[str, Any]:
    """A whole chat.completion object."""
    service = writer.service
    async with answer(service, writer.request, caller) as under_way:
        choices = await gather(under_way)
        body = writer.base("chat.completion")
        body["choices"] = [_choice(writer, i, choice) for i, choice in enumerate(choices)]
        body["usage"] = service.usage([under_way.generation])
        if writer.request.prompt_logprobs is not None:
            rows = under_way.generation.completions[0].prompt_logprobs
            body["prompt_logprobs"] = logprobs.prompt_rows(service.text.tokenizer, rows)
        return body


def _choice(writer: ChatWriter, index: int, choice: Gathered) -> dict[str, Any]:
    message: dict[str, Any] = {
        "role": "assistant",
        "content": choice.content if choice.content or not choice.calls else None,
        "refusal": None,
    }
    if choice.reasoning:
        message["reasoning_content"] = message["reasoning"] = choice.reasoning
    if choice.calls:
        message["tool_calls"] = [
            {
                "id": call_id(),
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in choice.calls
        ]
    return {
        "index": index,
        "message": message,
        "logprobs": writer.described(choice.logprobs),
        "finish_reason": choice.finish_reason,
    }
