"""A request on its way through the engine, and what each step says of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import msgspec

from lite_llama.cache.block_pool import BlockKey
from lite_llama.engine.sampling_params import SamplingParams

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

FinishReason = Literal["stop", "length", "abort", "error"]


class Grammar(Protocol):
    """What may come next in one answer. The grammars of one engine are of one class."""

    @staticmethod
    def fill_masks(grammars: "Mapping[int, Any]", words: "NDArray[np.int32]") -> Mapping[int, str]:
        """Write the tokens that each grammar allows next into its row of `words`.

        `words` [num_rows, ceil(vocab / 32)]: token i is bit i % 32 of word i // 32; other rows are
        left alone. Returns why, by row, for those that broke.
        """

    def accept(self, token_id: int) -> None:
        """Go on behind the token that was drawn; an exception ends the grammar's request only."""


@dataclass(eq=False)
class Request:
    """State of one sequence. The scheduler alone changes it; identity is equality."""

    request_id: str
    prompt_token_ids: list[int]
    params: SamplingParams
    seed: int
    stop_token_ids: frozenset[int]  # the request's own and, unless it ignores them, the model's
    max_total_tokens: int  # prompt and answer
    cache_salt: str = ""
    output_token_ids: list[int] = field(default_factory=list)
    num_unread_tokens: int = 0  # drawn, but only the device knows which: none, or the last one
    num_computed_tokens: int = 0
    num_cached_tokens: int = 0  # prompt tokens found in the prefix cache at first admission
    num_preemptions: int = 0
    blocks: list[int] = field(default_factory=list)
    block_keys: list[BlockKey] = field(default_factory=list)
    finish_reason: FinishReason | None = None
    stop_token_id: int | None = None
    grammar: Grammar | None = None
    grammar_error: str | None = None  # why its grammar broke; the request ends with this step
    # Tokens so far: prompt and output, with one that is drawn and not read yet.
    num_tokens: int = field(init=False)
    # The host has its part in a draw: before it, for which it reads the token before, or behind it.
    needs_host: bool = field(init=False)
    # Its tokens are drawn from the logits as they are, and nothing but them is asked for.
    is_plain: bool = field(init=False)

    def __post_init__(self) -> None:
        params = self.params
        num_known = len(self.prompt_token_ids) + len(self.output_token_ids)
        self.num_tokens = num_known + self.num_unread_tokens
        self.needs_host = (
            self.grammar is not None
            or params.has_penalties
            or bool(params.logit_bias)  # a greedy draw within a graph would not see it
            or params.logprobs is not None
        )
        self.is_plain = (
            not self.needs_host and params.min_tokens == 0 and params.prompt_logprobs is None
        )

    @property
    def num_pending_tokens(self) -> int:
        """Tokens whose keys and values are not in the cache yet."""
        return self.num_tokens - self.num_computed_tokens

    def tokens(self, start: int, stop: int) -> list[int]:
        """Tokens start..stop, across prompt and output, as far as they are read."""
        split = len(self.prompt_token_ids)
        if stop <= split:
            return self.prompt_token_ids[start:stop]
        if start >= split:
            return self.output_token_ids[start - split : stop - split]
        return self.prompt_token_ids[start:] + self.output_token_ids[: stop - split]


class TokenLogprob(msgspec.Struct, frozen=True, array_like=True):
    """A token and its log-probability under the model's own distribution."""

    token_id: int
    logprob: float
    rank: int  # 1 = most likely


# The chosen (or prompt) token first, then the most likely ones in order.
TokenLogprobs = Sequence[TokenLogprob]


class StepOutput(msgspec.Struct, frozen=True, array_like=True):
    """What one step brought for one request: a token, and the end if it came.

    A Struct because it is made once a token, and a server's engine sends it to another process.
    """

    request_id: str
    token_id: int
    logprobs: TokenLogprobs | None
    prompt_logprobs: Sequence[TokenLogprobs | None] | None  # with the first token, if asked
    finish_reason: FinishReason | None
    stop_token_id: int | None  # the id that ended it, if one did
    num_cached_tokens: int
    error: str | None = None  # with finish_reason "error"
