"""What a model's files say of text: its tokenizer, chat template, defaults and end tokens.

No weights and no torch: a server's HTTP process has this, and the engine's process the rest.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from lite_llama.checkpoint.reader import Checkpoint
from lite_llama.engine.sampling_params import SamplingParams
from lite_llama.errors import ContextTooLong, ModelFileError, RequestError
from lite_llama.text.chat_template import ChatTemplate
from lite_llama.text.tokenizer import Tokenizer

Message = Mapping[str, Any]

# A prompt of more bytes than this times max_model_len cannot fit; it is refused unread.
_MAX_BYTES_PER_TOKEN = 8


def read_tokenizer(checkpoint: Checkpoint) -> Tokenizer | None:
    """The tokenizer of a checkpoint, if it has one; ModelFileError if it is damaged."""
    if checkpoint.kind == "gguf":
        return Tokenizer.from_gguf(checkpoint.metadata)
    return None if checkpoint.tokenizer_path is None else Tokenizer.from_hf(checkpoint.path)


def eos_ids(checkpoint: Checkpoint, tokenizer: Tokenizer | None, vocab_size: int) -> frozenset[int]:
    """Every id that ends an answer: of tokenizer, generation_config.json and config.json."""
    ids = set() if tokenizer is None else set(tokenizer.eos_ids)
    for source in (checkpoint.generation_config, checkpoint.metadata):
        named = source.get("eos_token_id")
        listed = named if isinstance(named, list) else [named]
        ids |= {token for token in listed if isinstance(token, int)}
    return frozenset(token for token in ids if 0 <= token < vocab_size)


class ModelText:
    """Prompts and settings of one model, for a context of `max_model_len` tokens."""

    def __init__(
        self, checkpoint: Checkpoint, tokenizer: Tokenizer | None, max_model_len: int
    ) -> None:
        self.max_model_len = max_model_len
        self.checkpoint = checkpoint
        self._tokenizer = tokenizer
        self._chat_template: ChatTemplate | None = None

    @property
    def tokenizer(self) -> Tokenizer:
        """The model's tokenizer; ModelFileError if it came without one."""
        if self._tokenizer is None:
            raise ModelFileError(
                f"{self.checkpoint.path} has no tokenizer.json; give prompts as token ids"
            )
        return self._tokenizer

    @property
    def chat_template_source(self) -> str | None:
        """The text of the model's chat template; None if it has none."""
        return self.checkpoint.chat_template

    def default_sampling_params(self) -> SamplingParams:
        """What the model's generation_config.json recommends, up to the context's end.

        Raises ModelFileError if it recommends what no request could ask for.
        """
        recommended = self.checkpoint.generation_config
        names = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")
        given = {name: recommended[name] for name in names if recommended.get(name) is not None}
        if recommended.get("do_sample") is False:
            given["temperature"] = 0.0
        try:
            return SamplingParams(max_tokens=None, **given)
        except RequestError as error:
            raise ModelFileError(
                f"{self.checkpoint.path / 'generation_config.json'}: {error}; correct the file"
            ) from None

    def encode(self, text: str) -> list[int]:
        """Token ids of a prompt; ContextTooLong, before any work, if it can never fit."""
        self._check_size(text)
        return self.tokenizer.encode(text)

    def render_chat(
        self,
        messages: Sequence[Message],
        *,
        tools: list[dict[str, Any]] | None = None,
        **kwargs: Any,
    ) -> list[int]:
        """Token ids of a conversation in the model's chat template, ready for the answer."""
        check_messages(messages)
        text = self.chat_template.render(messages, tools=tools, **kwargs)
        return self.encode_chat(text)

    @property
    def chat_template(self) -> ChatTemplate:
        """The model's chat template; ModelFileError if it has none, or a broken one."""
        if self._chat_template is None:
            self._chat_template = ChatTemplate(
                self.chat_template_source,
                bos_token=self.tokenizer.bos_token,
                eos_token=self.tokenizer.eos_token,
            )
        return self._chat_template

    def encode_chat(self, text: str) -> list[int]:
        """Token ids of a rendered conversation."""
        self._check_size(text)
        return self.tokenizer.encode(text, add_special_tokens=False)

    def close(self) -> None:
        """Stop the chat template's process; it starts again when it is needed."""
        self._chat_template = None  # its process ends with it

    def _check_size(self, text: str) -> None:
        limit = _MAX_BYTES_PER_TOKEN * self.max_model_len
        size = len(text.encode(errors="replace"))
        if size > limit:
            raise ContextTooLong(
                f"prompt has {size} bytes, limit {limit} ({_MAX_BYTES_PER_TOKEN} x max_model_len "
                f"{self.max_model_len}); shorten it or raise max_model_len",
                param="prompt",
            )


def check_messages(messages: object) -> None:
    """Raise RequestError unless there is a list of at least one message."""
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes) or not messages:
        raise RequestError(
            "messages is empty or no list, expected at least one message", param="messages"
        )
