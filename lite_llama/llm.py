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
from lite_llama.checkpoint.reader import Checkpoint, open_checkpoint
from lite_llama.completion import Completion, CompletionOutput, TextChunk
from lite_llama.engine.config import EngineConfig, choose_num_blocks, free_memory, resolve
from lite_llama.engine.engine import Engine
from lite_llama.engine.request import TokenLogprobs
from lite_llama.engine.sampling_params import SamplingParams
from lite_llama.engine.workers import Workers
from lite_llama.errors import ContextTooLong, EngineError, ModelFileError, RequestError
from lite_llama.models.loader import check_shares, load_decoder, read_config
from lite_llama.text.chat_template import ChatTemplate
from lite_llama.text.tokenizer import Tokenizer

Prompt = str | Sequence[int]
Message = Mapping[str, Any]

# A prompt of more bytes than this times max_model_len cannot fit; it is refused unread.
_MAX_BYTES_PER_TOKEN = 8


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
        self._checkpoint = checkpoint
        self._tokenizer = _read_tokenizer(checkpoint)
        self._chat_template: ChatTemplate | None = None
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
            self._checkpoint,
            self.model_config,
            self.plan.precision,
            device=self.plan.device,
            num_positions=self.plan.max_model_len,
            progress=progress,
            ranks=None if workers is None else workers.ranks,
        )
        free_bytes = free_memory(self.plan.device) if workers is None else workers.meet()
        num_blocks = choose_num_blocks(config, self.plan, decoder.config, free_bytes)
        eos = _eos_ids(self._checkpoint, self._tokenizer, self.model_config.vocab_size)
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
        if self._tokenizer is None:
            raise ModelFileError(
                f"{self._checkpoint.path} has no tokenizer.json; give prompts as token ids"
            )
        return self._tokenizer

    @property
    def chat_template_source(self) -> str | None:
        """The text of the model's chat template; None if it has none."""
        return self._checkpoint.chat_template

    def default_sampling_params(self) -> SamplingParams:
        """What the model's generation_config.json recommends, up to the context's end.

        Raises ModelFileError if it recommends what no request could ask for.
        """
        recommended = self._checkpoint.generation_config
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        given = {name: recommended[name] for name in names if recommended.get(name) is not None}
        if recommended.get("do_sample") is False:
            given["temperature"] = 0.0
        try:
            return SamplingParams(max_tokens=None, **given)
        except RequestError as error:
            raise ModelFileError(
                f"{self._checkpoint.path / 'generation_config.json'}: {error}; correct the file"
            ) from None

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
        _check_list(messages)
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
        _check_list(messages)
        if not all(isinstance(message, Mapping) for message in messages):
            raise RequestError(
                'messages has an entry that is no {"role", "content"} map', param="messages"
            )
        if self._chat_template is None:
            tokenizer = self.tokenizer
            self._chat_template = ChatTemplate(
                self._checkpoint.chat_template,
                bos_token=tokenizer.bos_token,
                eos_token=tokenizer.eos_token,
            )
        text = self._chat_template.render(
            [dict(message) for message in messages], tools=tools, **kwargs
        )
        self._check_size(text)
        return self.tokenizer.encode(text, add_special_tokens=False)

    def logits(self, token_ids: Sequence[int]) -> Tensor:
        """Logits float32 [num_tokens, vocab] of a text given as token ids."""
        return self.engine.logits(token_ids)

    def close(self) -> None:
        """End all requests, let go of weights and cache, and stop every process it has started."""
        self._drop(list(self._live.values()))
        engine, self._engine = self._engine, None
        self._chat_template = None  # its process ends with it
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
            self._check_size(prompt)
            return self.tokenizer.encode(prompt)
        if not isinstance(prompt, Sequence) or isinstance(prompt, bytes):
            raise RequestError(
                f"prompt is of type {type(prompt).__name__}, expected text or a list of token ids",
                param="prompt",
            )
        return list(cast(Sequence[int], prompt))

    def _check_size(self, text: str) -> None:
        limit = _MAX_BYTES_PER_TOKEN * self.plan.max_model_len
        size = len(text.encode(errors="replace"))
        if size > limit:
            raise ContextTooLong(
                f"prompt has {size} bytes, limit {limit} ({_MAX_BYTES_PER_TOKEN} x max_model_len "
                f"{self.plan.max_model_len}); shorten it or raise max_model_len",
                param="prompt",
            )

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
            completion.chunks.append(completion.push(step))
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


def _check_list(messages: object) -> None:
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes) or not messages:
        raise RequestError(
            "messages is empty or no list, expected at least one message", param="messages"
        )


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


def _read_tokenizer(checkpoint: Checkpoint) -> Tokenizer | None:
    if checkpoint.kind == "gguf":
        return Tokenizer.from_gguf(checkpoint.metadata)
    return None if checkpoint.tokenizer_path is None else Tokenizer.from_hf(checkpoint.path)


def _eos_ids(
    checkpoint: Checkpoint, tokenizer: Tokenizer | None, vocab_size: int
) -> frozenset[int]:
    """Every id that ends an answer: of tokenizer, generation_config.json and config.json."""
    ids = set() if tokenizer is None else set(tokenizer.eos_ids)
    for source in (checkpoint.generation_config, checkpoint.metadata):
        named = source.get("eos_token_id")
        listed = named if isinstance(named, list) else [named]
        ids |= {token for token in listed if isinstance(token, int)}
    return frozenset(token for token in ids if 0 <= token < vocab_size)
