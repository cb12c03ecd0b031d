"""The Python API: text in, text out."""

import contextlib
import gc
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import count
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import torch
from torch import Tensor

from lite_llama.checkpoint.default_model import find_default_model
from lite_llama.checkpoint.reader import open_checkpoint
from lite_llama.completion import Completion, CompletionOutput, TextChunk
from lite_llama.engine.config import EngineConfig, choose_num_blocks, free_memory, resolve
from lite_llama.engine.engine import Engine
from lite_llama.engine.request import TokenLogprobs
from lite_llama.engine.sampling_params import SamplingParams
from lite_llama.engine.workers import Workers
from lite_llama.errors import EngineError, RequestError
from lite_llama.model_text import Message, ModelText, check_messages, eos_ids, read_tokenizer
from lite_llama.models.loader import check_shares, load_decoder, read_config
from lite_llama.text.tokenizer import Tokenizer

Prompt = str | Sequence[int]


@dataclass(frozen=True)
class RequestOutput:
    """A prompt and its completions."""

    request_id: str
    prompt: str | None
    prompt_token_ids: list[int]
    prompt_logprobs: Sequence[TokenLogprobs | None] | None
    outputs: list[CompletionOutput]
    num_cached_tokens: int


class LLM:
    """A loaded model, ready to answer.

    `model` is a Hugging Face directory, a `.gguf` file, or None for the small default model.
    Further keywords are the fields of EngineConfig (`LLM(path, dtype="float32")`).
    `progress(done_bytes, total_bytes)` is called while weights load.
    Raises ModelFileError for an unusable model, ConfigError for impossible settings.
    """

    def __init__(
        self,
        model: str | Path | None = None,
        *,
        progress: Callable[[int, int], None] | None = None,
        **settings: Any,
    ) -> None:
        config = EngineConfig(**settings)
        checkpoint = open_checkpoint(find_default_model() if model is None else model)
        self.model_config = read_config(checkpoint)
        formats = {raw.format for raw in checkpoint.tensors.values()}
        self.plan = resolve(config, self.model_config, formats)
        tokenizer = read_tokenizer(checkpoint)
        self.text = ModelText(checkpoint, tokenizer, self.plan.max_model_len)
        self._tokenizer = tokenizer
        self._live: dict[str, Completion] = {}
        self._ids = count()
        workers = None
        if self.plan.tensor_parallel_size > 1:
            check_shares(checkpoint, self.model_config, self.plan.tensor_parallel_size)
            workers = Workers(self.plan, model=str(checkpoint.path.resolve()), preset=None)
        try:
            self._engine: Engine | None = self._load(config, progress, workers)
        except BaseException:
            if workers is not None:
                workers.close()
            raise

    def _load(
        self,
        config: EngineConfig,
        progress: Callable[[int, int], None] | None,
        workers: Workers | None,
    ) -> Engine:
        decoder = load_decoder(
            self.text.checkpoint,
            self.model_config,
            self.plan.precision,
            device=self.plan.device,
            num_positions=self.plan.max_model_len,
            progress=progress,
            ranks=None if workers is None else workers.ranks,
        )
        free_bytes = free_memory(self.plan.device) if workers is None else workers.meet()
        num_blocks = choose_num_blocks(config, self.plan, decoder.config, free_bytes)
        eos = eos_ids(self.text.checkpoint, self._tokenizer, self.model_config.vocab_size)
        return Engine(decoder, self.plan, num_blocks, eos, workers)

    @property
    def engine(self) -> Engine:
        """The engine; EngineError if this LLM is closed."""
        if self._engine is None:
            raise EngineError("this LLM is closed; make another one")
        return self._engine

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer; ModelFileError if it came without one."""
        return self.text.tokenizer

    def default_sampling_params(self) -> SamplingParams:
        """What the model's generation_config.json recommends, up to the context's end.

        Raises ModelFileError if it recommends what no request could ask for.
        """
        return self.text.default_sampling_params()

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
    ) -> list[RequestOutput]:
        """Complete prompts (texts or token id lists), all at once; outputs in the prompts' order.

        One SamplingParams serves all prompts, or there is one for each; None takes the model's
        defaults. A bad prompt or setting raises before anything runs.
        """
        listed = _as_list(prompts)
        params = self._params_for(listed, sampling_params)
        tokenised = [self._tokenise(prompt) for prompt in listed]
        groups: list[list[Completion]] = []
        try:
            for token_ids, each in zip(tokenised, params, strict=True):
                groups.append([])
                self._add(token_ids, each, groups[-1])
            while any(one.finish_reason is None for group in groups for one in group):
                self._step()
        finally:
            self._drop(one for group in groups for one in group)
        return [
            _request_output(prompt, token_ids, group)
            for prompt, token_ids, group in zip(listed, tokenised, groups, strict=True)
        ]

    def chat(
        self,
        messages: Sequence[Message] | Sequence[Sequence[Message]],
        sampling_params: SamplingParams | None = None,
        *,
        tools: list[dict[str, Any]] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """Answer one conversation, or several: lists of {"role", "content"} messages."""
        check_messages(messages)
        several = not isinstance(messages[0], Mapping)
        conversations: Sequence[Any] = messages if several else [messages]
        options = dict(chat_template_kwargs or {})
        prompts = [self.render_chat(each, tools=tools, **options) for each in conversations]
        return self.generate(prompts, sampling_params)

    def stream(
        self, prompt: Prompt, sampling_params: SamplingParams | None = None
    ) -> Iterator[TextChunk]:
        """Complete one prompt, handing out text as it comes; leaving the loop early ends it."""
        params = self._params_for([prompt], sampling_params)[0]
        group: list[Completion] = []
        try:
            self._add(self._tokenise(prompt), params, group)
            while True:
                for completion in group:
                    while completion.chunks:
                        yield completion.chunks.popleft()
                if all(completion.finish_reason is not None for completion in group):
                    return
                self._step()
        finally:
            self._drop(group)

    def render_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: list[dict[str, Any]] | None = None,
        **kwargs: Any,
    ) -> list[int]:
        """Token ids of a conversation in the model's chat template, ready for the answer."""
        return self.text.render_chat(messages, tools=tools, **kwargs)

    def logits(self, token_ids: Sequence[int]) -> Tensor:
        """Logits float32 [num_tokens, vocab] of a text given as token ids."""
        return self.engine.logits(token_ids)

    def close(self) -> None:
        """End all requests, let go of weights and cache, and stop every process it has started."""
        self._drop(list(self._live.values()))
        engine, self._engine = self._engine, None
        self.text.close()
        is_lost = engine is not None and engine.is_lost
        if engine is not None:
            engine.close()
        del engine
        if self.plan.device.type == "cuda" and not is_lost:
            gc.collect()
            with contextlib.suppress(torch.AcceleratorError):  # a lost device has nothing to give
                torch.cuda.empty_cache()  # what torch keeps for its own next use

    def __enter__(self) -> "LLM":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def _params_for(
        self,
        prompts: Sequence[Prompt],
        params: SamplingParams | Sequence[SamplingParams] | None,
    ) -> list[SamplingParams]:
        if params is None or isinstance(params, SamplingParams):
            return [params or self.default_sampling_params()] * len(prompts)
        if not isinstance(params, Sequence) or not all(
            isinstance(each, SamplingParams) for each in params
        ):
            raise RequestError(
                "sampling_params is neither SamplingParams nor a list of them; give one of these",
                param="sampling_params",
            )
        if len(params) != len(prompts):
            raise RequestError(
                f"{len(params)} sampling_params for {len(prompts)} prompts; give one, or one each",
                param="sampling_params",
            )
        return list(params)

    def _tokenise(self, prompt: Prompt) -> list[int]:
        if isinstance(prompt, str):
            return self.text.encode(prompt)
        if not isinstance(prompt, Sequence) or isinstance(prompt, bytes):
            raise RequestError(
                f"prompt is of type {type(prompt).__name__}, expected text or a list of token ids",
                param="prompt",
            )
        return list(cast(Sequence[int], prompt))

    def _add(self, token_ids: list[int], params: SamplingParams, group: list[Completion]) -> None:
        """Queue the n completions of a prompt; those queued are in `group` even if one fails."""
        number = next(self._ids)
        for index in range(params.n):
            request_id = f"{number}-{index}"
            seed = None if params.seed is None else (params.seed + index) % 2**63
            self.engine.add(request_id, token_ids, replace(params, n=1, seed=seed))
            completion = Completion.begin(
                request_id, index, params, len(token_ids), self._tokenizer
            )
            self._live[request_id] = completion
            group.append(completion)

    def _step(self) -> None:
        """One engine step, whose tokens go to whichever calls are waiting for them."""
        for step in self.engine.step():
            completion = self._live[step.request_id]
            completion.chunks.append(completion.push([step]))
            if completion.finish_reason is not None:
                del self._live[step.request_id]
                self.engine.abort(step.request_id)

    def _drop(self, completions: Iterator[Completion] | Sequence[Completion]) -> None:
        for completion in completions:
            if self._live.pop(completion.request_id, None) is not None:
                self.engine.abort(completion.request_id)


def _as_list(prompts: Prompt | Sequence[Prompt]) -> list[Prompt]:
    if isinstance(prompts, str):
        return [prompts]
    if not isinstance(prompts, Sequence) or isinstance(prompts, bytes):
        raise RequestError(
            f"prompt is of type {type(prompts).__name__}, expected text or a list of token ids",
            param="prompt",
        )
    listed = list(prompts)
    if any(isinstance(prompt, Sequence) for prompt in listed):
        return cast(list[Prompt], listed)
    return [cast(list[int], listed)]


def _request_output(prompt: Prompt, token_ids: list[int], group: list[Completion]) -> RequestOutput:
    first = group[0]
    return RequestOutput(
        request_id=first.request_id.partition("-")[0],
        prompt=prompt if isinstance(prompt, str) else None,
        prompt_token_ids=token_ids,
        prompt_logprobs=first.prompt_logprobs,
        outputs=[completion.output() for completion in group],
        num_cached_tokens=first.num_cached_tokens,
    )
