"""POST /v1/completions: plain texts or token ids, one or many, continued."""

import asyncio
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import ExitStack, asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

from lite_llama.completion import Completion, TextChunk
from lite_llama.engine.request import FinishReason, TokenLogprobs
from lite_llama.server import logprobs
from lite_llama.server.async_engine import Generation
from lite_llama.server.chat import format_spec
from lite_llama.server.http import choice_prefix, data_event, encode, fresh_id
from lite_llama.server.problems import Problem
from lite_llama.server.protocol import MAX_PROMPTS, CompletionRequest, sampling_params
from lite_llama.server.service import Caller, Service

Prompt = str | list[int]


@dataclass
class CompletionWriter:
    """Writes answers as text_completion objects."""

    service: Service
    request: CompletionRequest
    model: str
    base: dict[str, Any] = field(init=False)  # the fields that every object has
    _prefix: bytes = field(init=False)  # of an event with one choice

    def __post_init__(self) -> None:
        self.base = {
            "id": f"cmpl-{fresh_id()}",
            "object": "text_completion",
            "created": self.service.now(),
            "model": self.model,
        }
        self._prefix = choice_prefix(self.base)

    def plain_event(self, index: int, text: str, end: FinishReason | None) -> bytes:
        """An event without log-probabilities: `data_event`, in half its time."""
        return b'%b%d,"text":%b,"logprobs":null,"finish_reason":%b}]}\n\n' % (
            self._prefix,
            index,
            encode(text),
            encode(end),
        )


@dataclass
class _Started:
    """One prompt of a request."""

    prompt: str  # as echoed
    generation: Generation


@asynccontextmanager
async def _started(writer: CompletionWriter, caller: Caller) -> AsyncIterator[list[_Started]]:
    """Admit, check, tokenize and queue all prompts of a request."""
    service, request = writer.service, writer.request
    params = sampling_params(request, service.defaults)
    if request.echo and request.logprobs is not None:
        params = replace(params, prompt_logprobs=request.logprobs)
    service.check_max_tokens(request, params, 0)
    prompts = _prompts(request.prompt)
    for prompt in prompts:
        service.check_bytes(_size(prompt), "prompt")
    with service.engine.reserve(params.n * len(prompts)), ExitStack() as opened:
        spec = format_spec(request)
        tokenised = await service.encode_all(prompts)
        started = []
        for token_ids in tokenised:
            service.check_max_tokens(request, params, len(token_ids))
        for prompt, token_ids in zip(prompts, tokenised, strict=True):
            generation = service.submit(token_ids, params, request, caller, spec)
            opened.callback(generation.close)
            text = prompt if isinstance(prompt, str) else service.text.tokenizer.decode(prompt)
            started.append(_Started(text, generation))
        yield started


def _prompts(given: Any) -> list[Prompt]:
    """The prompts of a request: a text, texts, token ids, or lists of token ids."""
    if isinstance(given, str):
        return [given]
    if isinstance(given, list) and given:
        if all(_is_id(each) for each in given):
            return [given]
        if len(given) > MAX_PROMPTS:
            raise Problem(400, f"prompt has {len(given)} entries, limit {MAX_PROMPTS}", "prompt")
        if all(isinstance(each, str) for each in given):
            return list(given)
        if all(isinstance(each, list) and all(map(_is_id, each)) for each in given):
            return list(given)
    raise Problem(
        400, "prompt is not a text, a list of texts, token ids, or lists of token ids", "prompt"
    )


def _is_id(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _size(prompt: Prompt) -> int:
    return len(prompt.encode()) if isinstance(prompt, str) else len(prompt)


async def complete(writer: CompletionWriter, caller: Caller) -> dict[str, Any]:
    """A whole text_completion object."""
    service = writer.service
    async with _started(writer, caller) as prompts:
        await asyncio.gather(*(_exhaust(each.generation) for each in prompts))
        choices = [
            _choice(writer, each, completion)
            for each in prompts
            for completion in each.generation.completions
        ]
        for index, choice in enumerate(choices):
            choice["index"] = index
        generations = [each.generation for each in prompts]
        return {**writer.base, "choices": choices, "usage": service.usage(generations)}


async def _exhaust(generation: Generation) -> None:
    generation.wait_for_end()
    async for _ in generation:
        pass


def _choice(writer: CompletionWriter, started: _Started, completion: Completion) -> dict[str, Any]:
    request, tokenizer = writer.request, writer.service.text.tokenizer
    echoed = started.prompt if request.echo else ""
    choice: dict[str, Any] = {
        "text": echoed + completion.text,
        "logprobs": None,
        "finish_reason": completion.finish_reason,
        "stop_reason": completion.stop_reason,
    }
    if request.logprobs is not None:
        rows: list[TokenLogprobs | None] = list(completion.logprobs)
        token_ids = list(completion.token_ids)
        if completion.ends_with_hidden_token:
            del rows[-1:], token_ids[-1:]
        if request.echo:
            rows = [*(completion.prompt_logprobs or ()), *rows]
            token_ids = [*started.generation.job.prompt_token_ids, *token_ids]
        choice["logprobs"] = logprobs.completion_rows(tokenizer, rows, token_ids, 0)
    if request.prompt_logprobs is not None:
        choice["prompt_logprobs"] = logprobs.prompt_rows(tokenizer, completion.prompt_logprobs)
    return choice


async def stream(writer: CompletionWriter, caller: Caller) -> AsyncGenerator[bytes, None]:
    """The events of a streamed completion, [DONE] included."""
    service, request = writer.service, writer.request
    async with _started(writer, caller) as prompts:
        num_completions = prompts[0].generation.job.params.n
        offsets = [0] * (len(prompts) * num_completions)
        is_plain = request.logprobs is None and not request.echo
        generations = [each.generation for each in prompts]
        merged = _alone(generations[0]) if len(generations) == 1 else _merged(generations)
        async for number, chunk in merged:
            started = prompts[number]
            index = number * num_completions + chunk.index
            if is_plain:
                if chunk.text or chunk.finish_reason:
                    yield writer.plain_event(index, chunk.text, chunk.finish_reason)
                continue
            choice = _described(writer, started, chunk, offsets, index)
            if choice["text"] or choice["logprobs"] or choice["finish_reason"]:
                yield data_event({**writer.base, "choices": [choice]})
        if request.stream_options is not None and request.stream_options.include_usage:
            usage = service.usage([each.generation for each in prompts])
            yield data_event({**writer.base, "choices": [], "usage": usage})
    yield b"data: [DONE]\n\n"


def _described(
    writer: CompletionWriter, started: _Started, chunk: TextChunk, offsets: list[int], index: int
) -> dict[str, Any]:
    request, tokenizer = writer.request, writer.service.text.tokenizer
    first = offsets[index] == 0
    text = chunk.text
    rows: list[TokenLogprobs | None] = list(chunk.logprobs)
    token_ids = list(chunk.token_ids[: len(rows)])
    if request.echo and first:
        text = started.prompt + text
        prompt_rows = started.generation.completions[chunk.index].prompt_logprobs
        rows = [*(prompt_rows or ()), *rows]
        token_ids = [*started.generation.job.prompt_token_ids, *token_ids]
    described = None
    if request.logprobs is not None:
        described = logprobs.completion_rows(tokenizer, rows, token_ids, offsets[index])
    offsets[index] += sum(len(logprobs.token_text(tokenizer, token)) for token in token_ids)
    return {
        "index": index,
        "text": text,
        "logprobs": described,
        "finish_reason": chunk.finish_reason,
    }


async def _alone(generation: Generation) -> AsyncIterator[tuple[int, TextChunk]]:
    """`_merged` of one, without its queue and tasks."""
    async for chunks in generation:
        for chunk in chunks:
            yield 0, chunk


async def _merged(generations: Sequence[Generation]) -> AsyncIterator[tuple[int, TextChunk]]:
    """The chunks of several generations as they come, with the generation's number."""
    queue: asyncio.Queue[tuple[int, list[TextChunk] | BaseException | None]] = asyncio.Queue()

    async def forward(number: int, generation: Generation) -> None:
        try:
            async for chunks in generation:
                queue.put_nowait((number, chunks))
        except Problem as problem:
            queue.put_nowait((number, problem))
        else:
            queue.put_nowait((number, None))

    tasks = [asyncio.create_task(forward(i, each)) for i, each in enumerate(generations)]
    try:
        remaining = len(tasks)
        while remaining:
            number, chunks = await queue.get()
            if isinstance(chunks, BaseException):
                raise chunks
            if chunks is None:
                remaining -= 1
                continue
            for chunk in chunks:
                yield number, chunk
    finally:
        for task in tasks:
            task.cancel()
