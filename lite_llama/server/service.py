"""From a request's fields to a job for the engine: limits, template, tokenizer, grammar."""

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, TypeVar

from lite_llama.engine.sampling_params import SamplingParams
from lite_llama.errors import ContextTooLong, RequestError
from lite_llama.model_text import ModelText
from lite_llama.server.async_engine import AsyncEngine, Generation, Job
from lite_llama.server.config import ServeConfig
from lite_llama.server.metrics import Metrics
from lite_llama.server.problems import Problem, refused
from lite_llama.server.protocol import ChatRequest, CompletionRequest, GenerationFields
from lite_llama.server.rendering import Renderer
from lite_llama.text.grammar import GrammarSpec
from lite_llama.text.prompt_worker import SHORT_PROMPT

T = TypeVar("T")

# Longest text, in bytes, for each token of the context; a longer one is refused unread.
_MAX_BYTES_PER_TOKEN = 8
# A conversation of a short prompt's characters, and so many messages, is written down for the
# process that renders it on the event loop: that takes less than the way to a thread and back, on
# which a busy loop keeps the GIL.
_SHORT_MESSAGES = 32
# Threads for long texts, whose tokenizing releases the GIL, and for long conversations.
_NUM_WORKERS = 2


@dataclass
class Caller:
    """Who sent a request, when, and what has become of it."""

    arrived: float  # time.monotonic()
    salt: str = ""  # keeps the prefix caches of two API keys apart
    generations: list[Generation] = field(default_factory=list)  # one a prompt


class Service:
    """One model, served."""

    def __init__(
        self, text: ModelText, engine: AsyncEngine, config: ServeConfig, metrics: Metrics, name: str
    ) -> None:
        self.text = text
        self.engine = engine
        self.config = config
        self.metrics = metrics
        self.names = config.served_model_names or (name,)
        self.created = int(time.time())
        self.defaults = replace(text.default_sampling_params(), seed=config.seed)
        self._workers = ThreadPoolExecutor(_NUM_WORKERS, "text")
        self._renderer = Renderer(text)
        self._renderer.start()

    @property
    def is_ready(self) -> bool:
        """Whether the engine lives, moves, and takes requests."""
        engine = self.engine
        moves = engine.silence_s < max(5.0, self.config.step_timeout_s if engine.is_busy else 5.0)
        return engine.death is None and not engine.draining and moves

    @property
    def template(self) -> str:
        """The source of the model's chat template; "" if it has none."""
        return self.text.chat_template_source or ""

    @property
    def described_defaults(self) -> dict[str, float]:
        """The sampling settings of a request that gives none."""
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        return {name: getattr(self.defaults, name) for name in names}

    def now(self) -> int:
        """The time stamp of an answer."""
        return int(time.time())

    def check_model(self, name: str | None) -> str:
        """The name to answer under; Problem 404 if it is not served here."""
        if name is None or name in self.names:
            return name or self.names[0]
        raise Problem(
            404,
            f"the model {name[:100]!r} is not served here; use {self.names[0]!r}",
            "model",
            "model_not_found",
        )

    async def in_thread(self, work: Callable[[], T]) -> T:
        """Run something slow off the event loop; a RequestError becomes its 400."""
        try:
            return await asyncio.get_running_loop().run_in_executor(self._workers, work)
        except RequestError as error:
            raise refused(error) from None

    async def encode_all(self, prompts: Sequence[str | list[int]]) -> list[list[int]]:
        """Token ids of plain prompts, those that are token ids already included."""

        async def encode(prompt: str | list[int]) -> list[int]:
            if isinstance(prompt, list):
                return prompt
            if len(prompt) <= SHORT_PROMPT:
                return await self._renderer.encode(prompt)
            return await self.in_thread(lambda: self.encode(prompt))

        try:
            return [await encode(prompt) for prompt in prompts]
        except RequestError as error:
            raise refused(error) from None

    def check_bytes(self, num_bytes: int, param: str) -> None:
        """Refuse a text that cannot fit into the context, before it is tokenized."""
        context = self.text.max_model_len
        limit = _MAX_BYTES_PER_TOKEN * context
        if num_bytes > limit:
            raise Problem(
                400,
                f"{param} has {num_bytes} bytes, limit {limit} ({_MAX_BYTES_PER_TOKEN} x "
                f"max_model_len {context}); shorten it",
                param,
                "context_length_exceeded",
            )

    def check_max_tokens(
        self, request: ChatRequest | CompletionRequest, params: SamplingParams, num_prompt: int
    ) -> None:
        """Refuse an answer that cannot fit behind a prompt of `num_prompt` tokens."""
        context = self.text.max_model_len
        asked = request.max_tokens
        name = "max_tokens"
        if isinstance(request, ChatRequest) and request.max_completion_tokens is not None:
            asked, name = request.max_completion_tokens, "max_completion_tokens"
        if num_prompt >= context:
            raise Problem(
                400,
                f"the prompt has {num_prompt} tokens, limit {context - 1} (max_model_len "
                f"{context} with at least one token of answer); shorten it",
                "messages" if isinstance(request, ChatRequest) else "prompt",
                "context_length_exceeded",
            )
        if asked is not None and num_prompt + asked > context:
            raise Problem(
                400,
                f"{name} is {asked}, limit {context - num_prompt} (max_model_len {context} less "
                f"{num_prompt} prompt tokens); lower it",
                name,
                "context_length_exceeded",
            )
        if params.min_tokens > context - num_prompt:
            raise Problem(
                400,
                f"min_tokens is {params.min_tokens}, limit {context - num_prompt}; lower it",
                "min_tokens",
            )

    def submit(
        self,
        token_ids: Sequence[int],
        params: SamplingParams,
        request: GenerationFields,
        caller: Caller,
        grammar: GrammarSpec | None,
    ) -> Generation:
        """Queue one prompt."""
        timeout = self.config.request_timeout_s if request.timeout is None else request.timeout
        timeout = min(timeout, self.config.request_timeout_s)
        generation = self.engine.submit(
            Job(
                model=request.model or self.names[0],
                prompt_token_ids=token_ids,
                params=params,
                deadline=caller.arrived + timeout,
                arrived=caller.arrived,
                cache_salt=f"{caller.salt}/{request.cache_salt or ''}",
                grammar=grammar,
            )
        )
        caller.generations.append(generation)
        return generation

    def encode(self, text: str, *, add_special_tokens: bool = True) -> list[int]:
        """Token ids of a plain text."""
        return self.text.tokenizer.encode(text, add_special_tokens=add_special_tokens)

    async def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: list[dict[str, Any]] | None,
        options: Mapping[str, Any],
    ) -> list[int]:
        """Token ids of a conversation; Problem 400 names the field at fault."""

        def ask() -> bytes:
            return self.text.chat_template.question(messages, tools=tools, **options)

        def encode(text: str) -> list[int]:
            try:
                return self.text.encode_chat(text)
            except ContextTooLong as error:
                raise RequestError(str(error), param="messages") from None

        try:
            question = ask() if _is_short(messages, tools) else await self.in_thread(ask)
            prompt = await self._renderer.render(question)
        except RequestError as error:
            raise refused(error) from None
        return await self.in_thread(partial(encode, prompt)) if isinstance(prompt, str) else prompt

    def usage(self, generations: Sequence[Generation]) -> dict[str, Any]:
        """The usage object of an answer."""
        prompt = sum(len(each.job.prompt_token_ids) for each in generations)
        generated = sum(each.num_generated_tokens for each in generations)
        return {
            "prompt_tokens": prompt,
            "completion_tokens": generated,
            "total_tokens": prompt + generated,
            "prompt_tokens_details": {
                "cached_tokens": sum(each.num_cached_tokens for each in generations)
            },
        }


def _is_short(messages: Sequence[Mapping[str, Any]], tools: list[dict[str, Any]] | None) -> bool:
    """Whether it takes less to write a conversation down than to go to a thread and back."""
    return (
        tools is None
        and len(messages) <= _SHORT_MESSAGES
        and all(message.keys() <= {"role", "content"} for message in messages)
        and sum(len(str(message.get("content"))) for message in messages) <= SHORT_PROMPT
    )
