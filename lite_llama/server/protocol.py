"""The fields of requests: their types, their bounds, and what they mean to the sampler.

`null` means "not given". A field of a wrong type or value is a 400 that names it; a known field
that is not implemented is a 400 that says so; an unknown one is ignored, and named in the
`x-ignored-fields` header of the answer. Bounds on sampling values are SamplingParams' own.
"""

import functools
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeVar

import msgspec
from msgspec import Struct

from lite_llama.engine.sampling_params import SamplingParams
from lite_llama.errors import RequestError
from lite_llama.server.problems import Problem, refused

MAX_PROMPTS = 64
MAX_MESSAGES = 2048
MAX_PARTS = 64
MAX_TOOLS = 128
MAX_USER_BYTES = 512
MAX_METADATA = (16, 64, 512)  # entries, characters of a key, characters of a value
MAX_TIMEOUT_S = 3600.0
MAX_SALT_BYTES = 256

_REFUSED = {
    "best_of": "best_of is not implemented; use n",
    "suffix": "suffix is not implemented; leave it out",
    "chat_template": "a request cannot bring its own chat template; leave it out",
    "functions": "functions is not implemented; use tools",
    "function_call": "function_call is not implemented; use tool_choice",
    "audio": "audio is not implemented; leave it out",
    "modalities": "modalities is not implemented: answers are text; leave it out",
    "prediction": "prediction is not implemented; leave it out",
    "web_search_options": "web_search_options is not implemented; leave it out",
    "use_beam_search": "use_beam_search is not implemented; leave it out",
    "guided_json": "guided_json is not implemented; use response_format",
    "guided_regex": "guided_regex is not implemented; use regex",
    "guided_choice": "guided_choice is not implemented; use regex",
    "guided_grammar": "guided_grammar is not implemented; use response_format or regex",
    "structured_outputs": "structured_outputs is not implemented; use response_format or regex",
    "grammar": "grammar is not implemented; use response_format or regex",
    "json_schema": "json_schema is not implemented; use response_format",
}

S = TypeVar("S", bound=Struct)


class StreamOptions(Struct):
    """How a stream is sent."""

    include_usage: bool | None = None


class JsonSchema(Struct):
    """A named schema."""

    schema: dict[str, Any] | None = None
    name: str | None = None
    description: str | None = None
    strict: bool | None = None


class ResponseFormat(Struct):
    """The form that an answer must have."""

    type: str
    json_schema: JsonSchema | None = None


class GenerationFields(Struct, kw_only=True):
    """What chat and plain completions have in common."""

    model: str | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    n: int | None = None
    stop: str | list[str] | None = None
    stop_token_ids: list[int] | None = None
    seed: int | None = None
    max_tokens: int | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool | None = None
    include_stop_str_in_output: bool | None = None
    response_format: ResponseFormat | None = None
    regex: str | None = None
    timeout: float | None = None
    cache_salt: str | None = None
    user: str | None = None
    metadata: dict[str, str] | None = None


class CompletionRequest(GenerationFields, kw_only=True):
    """POST /v1/completions."""

    prompt: Any = None
    echo: bool | None = None
    logprobs: int | None = None


class Function(Struct):
    """A function that the model may call; `parameters` is a JSON schema."""

    name: str
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(Struct):
    """A tool on offer."""

    type: str
    function: Function


class FunctionName(Struct):
    """Which function is meant."""

    name: str


class NamedTool(Struct):
    """A tool_choice that asks for one function."""

    type: str
    function: FunctionName


class CalledFunction(Struct):
    """A function and its arguments, JSON in a string."""

    name: str
    arguments: str


class CalledTool(Struct):
    """A call that an earlier answer made."""

    function: CalledFunction
    id: str | None = None
    type: str | None = None


class Part(Struct):
    """A piece of a message."""

    type: str
    text: str | None = None


class ChatMessage(Struct, kw_only=True):
    """A message of the conversation."""

    role: str
    content: str | list[Part] | None = None
    name: str | None = None
    tool_calls: list[CalledTool] | None = None
    tool_call_id: str | None = None
    reasoning_content: str | None = None


class ChatRequest(GenerationFields, kw_only=True):
    """POST /v1/chat/completions."""

    messages: list[ChatMessage] | None = None
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    tools: list[Tool] | None = None
    tool_choice: str | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class TokenizeRequest(Struct, kw_only=True):
    """POST /tokenize: a text, or a conversation."""

    model: str | None = None
    prompt: str | None = None
    messages: list[ChatMessage] | None = None
    tools: list[Tool] | None = None
    add_special_tokens: bool | None = None
    add_generation_prompt: bool | None = None
    chat_template_kwargs: dict[str, Any] | None = None


class DetokenizeRequest(Struct, kw_only=True):
    """POST /detokenize."""

    model: str | None = None
    tokens: list[int]


def read(body: Mapping[str, Any], kind: type[S]) -> tuple[S, list[str]]:
    """A body as a request struct, and the names of its unknown fields."""
    known = _field_names(kind)
    unknown = []
    for name, value in body.items():
        if name in known or value is None:
            continue
        if name in _REFUSED:
            raise Problem(400, _REFUSED[name], name)
        unknown.append(name)
    try:
        request = msgspec.convert(body, kind, strict=True)
    except msgspec.ValidationError as error:
        raise _described(str(error)) from None
    if isinstance(request, GenerationFields):
        _check_bounds(request)
    return request, unknown


@functools.cache
def _field_names(kind: type[Struct]) -> frozenset[str]:
    """Names in the body; looking them up takes a millisecond."""
    return frozenset(field.encode_name for field in msgspec.structs.fields(kind))


def _described(message: str) -> Problem:
    """msgspec's message, 'Expected `int | null`, got `str` - at `$.n`', as a 400."""
    text, _, path = message.partition(" - at ")
    path = path.strip("`").removeprefix("$").lstrip(".")
    if not path:
        missing = text.partition("missing required field `")[2].rstrip("`")
        return Problem(400, text, missing or None)
    return Problem(400, f"{path}: {text[:200]}", path.partition(".")[0].partition("[")[0])


def _check_bounds(request: GenerationFields) -> None:
    if request.timeout is not None and not 0 < request.timeout <= MAX_TIMEOUT_S:
        raise Problem(
            400, f"timeout is {request.timeout}, limit (0, {MAX_TIMEOUT_S:g}] seconds", "timeout"
        )
    for name, limit in (("user", MAX_USER_BYTES), ("cache_salt", MAX_SALT_BYTES)):
        size = len((getattr(request, name) or "").encode())
        if size > limit:
            raise Problem(400, f"{name} has {size} bytes, limit {limit}; shorten it", name)
    entries, key_size, value_size = MAX_METADATA
    metadata = request.metadata or {}
    if len(metadata) > entries or any(
        len(key) > key_size or len(value) > value_size for key, value in metadata.items()
    ):
        raise Problem(
            400,
            f"metadata is limited to {entries} entries, keys of {key_size} and values of "
            f"{value_size} characters",
            "metadata",
        )
    if request.stream_options is not None and not request.stream:
        raise Problem(400, "stream_options is for streams; set stream", "stream_options")


_SAME_NAME = frozenset(
    {"n", "stop", "stop_token_ids", "seed", "max_tokens", "min_tokens", "ignore_eos"}
    | {"temperature", "top_p", "top_k", "min_p", "prompt_logprobs", "skip_special_tokens"}
    | {"presence_penalty", "frequency_penalty", "repetition_penalty", "include_stop_str_in_output"}
)


def sampling_params(
    request: CompletionRequest | ChatRequest, defaults: SamplingParams
) -> SamplingParams:
    """The request's sampling settings over the model's defaults; Problem names a bad field."""
    given = {name: value for name in _SAME_NAME if (value := getattr(request, name)) is not None}
    if request.logit_bias is not None:
        given["logit_bias"] = _token_ids(request.logit_bias)
    renamed = {}
    if isinstance(request, CompletionRequest):
        given["logprobs"] = request.logprobs
        given.setdefault("max_tokens", 16)  # OpenAI's default
    else:
        given["logprobs"] = _chat_logprobs(request)
        renamed["logprobs"] = "top_logprobs"
        if request.max_completion_tokens is not None:
            given["max_tokens"] = request.max_completion_tokens
            renamed["max_tokens"] = "max_completion_tokens"
    try:
        return _replaced(defaults, given)
    except RequestError as error:
        problem = refused(error)
        name = renamed.get(str(error.param))
        if name is not None:
            problem = Problem(400, problem.message.replace(str(error.param), name, 1), name)
        raise problem from None


def _replaced(defaults: SamplingParams, given: Mapping[str, Any]) -> SamplingParams:
    """Checked settings. Most requests give the same as others, which need no second check."""
    key = tuple((name, type(value), value) for name, value in given.items())
    try:
        return _replaced_once(defaults, key)
    except TypeError:  # a list, or a dict
        return replace(defaults, **given)


@functools.lru_cache(maxsize=256)
def _replaced_once(
    defaults: SamplingParams, given: tuple[tuple[str, type[Any], Any], ...]
) -> SamplingParams:
    return replace(defaults, **{name: value for name, _, value in given})


def _chat_logprobs(request: ChatRequest) -> int | None:
    if request.top_logprobs is not None and not request.logprobs:
        raise Problem(400, "top_logprobs needs logprobs: true", "top_logprobs")
    return (request.top_logprobs or 0) if request.logprobs else None


def _token_ids(bias: Mapping[str, float]) -> dict[int, float]:
    for key in bias:
        if len(key) > 10 or not (key.isascii() and key.isdecimal()):
            shown = key[:40]
            raise Problem(400, f"logit_bias has key {shown!r}, expected a token id", "logit_bias")
    return {int(key): value for key, value in bias.items()}
