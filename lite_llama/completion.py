"""One answer as it grows: tokens in, text, stop strings, log-probabilities and figures out."""

import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import msgspec

from lite_llama.engine.request import FinishReason, StepOutput, TokenLogprobs
from lite_llama.engine.sampling_params import SamplingParams
from lite_llama.text.stream import IncrementalDetokenizer, StopStrings
from lite_llama.text.tokenizer import Tokenizer


@dataclass(frozen=True)
class RequestMetrics:
    """Counts and times of one request."""

    num_prompt_tokens: int
    num_cached_tokens: int
    num_generated_tokens: int
    time_to_first_token_s: float
    generation_s: float  # from the first token to the last

    @property
    def tokens_per_s(self) -> float:
        """Rate of the tokens after the first; 0.0 if there was only one."""
        if self.num_generated_tokens < 2 or self.generation_s <= 0:
            return 0.0
        return (self.num_generated_tokens - 1) / self.generation_s


class TextChunk(msgspec.Struct, frozen=True):
    """A piece of a streamed answer. The last one carries finish_reason and metrics."""

    index: int  # which of the n completions
    text: str
    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    metrics: RequestMetrics | None = None
    logprobs: tuple[TokenLogprobs, ...] = ()  # if asked for: of each token that is part of the text


@dataclass(frozen=True)
class CompletionOutput:
    """One completion of a prompt."""

    index: int
    text: str
    token_ids: list[int]
    cumulative_logprob: float | None
    logprobs: list[TokenLogprobs] | None
    finish_reason: FinishReason | None
    stop_reason: int | str | None  # the token id or string that ended it
    metrics: RequestMetrics


@dataclass
class Completion:
    """One sequence being generated: its text so far, and the chunks not yet handed out."""

    request_id: str
    index: int
    params: SamplingParams
    num_prompt_tokens: int
    detokenizer: IncrementalDetokenizer | None
    stops: StopStrings
    started: float = field(default_factory=time.perf_counter)
    first_token_at: float = 0.0
    last_token_at: float = 0.0
    text: str = ""
    token_ids: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprobs] = field(default_factory=list)
    prompt_logprobs: Sequence[TokenLogprobs | None] | None = None
    num_cached_tokens: int = 0
    finish_reason: FinishReason | None = None
    stop_reason: int | str | None = None
    chunks: deque[TextChunk] = field(default_factory=deque)  # for LLM.stream to fetch

    @classmethod
    def begin(
        cls,
        request_id: str,
        index: int,
        params: SamplingParams,
        num_prompt_tokens: int,
        tokenizer: Tokenizer | None,
    ) -> "Completion":
        """An empty answer; without a tokenizer it has token ids but no text."""
        return cls(
            request_id,
            index,
            params,
            num_prompt_tokens,
            None
            if tokenizer is None
            else IncrementalDetokenizer(
                tokenizer, skip_special_tokens=params.skip_special_tokens, continues_text=True
            ),
            StopStrings(params.stop_strings, include_stop=params.include_stop_str_in_output),
        )

    def push(self, steps: Sequence[StepOutput]) -> TextChunk:
        """Take in the tokens of one step or several; sets finish_reason when the answer ends.

        The pieces of text, joined, do not depend on how many steps come at a time: tokens behind a
        stop string are left out, as if they had not been drawn.
        """
        self.last_token_at = time.perf_counter()
        first = len(self.token_ids)
        if first == 0:
            self.first_token_at = self.last_token_at
            self.prompt_logprobs = steps[0].prompt_logprobs
            self.num_cached_tokens = steps[0].num_cached_tokens
        if self.params.stop and len(steps) > 1:
            piece = self._take_one_by_one(steps)
        else:
            piece = self._take(steps)
        self.text += piece
        rows = self.logprobs[first:] if self.logprobs else []
        if self.ends_with_hidden_token:
            del rows[-1:]
        return TextChunk(
            self.index,
            piece,
            tuple(self.token_ids[first:]),
            self.finish_reason,
            None if self.finish_reason is None else self.metrics(),
            tuple(rows),
        )

    @property
    def ends_with_hidden_token(self) -> bool:
        """Whether the last token is a stop token, which is not part of the text."""
        return isinstance(self.stop_reason, int) and not self.params.include_stop_str_in_output

    def _take_one_by_one(self, steps: Sequence[StepOutput]) -> str:
        """The text of several steps, up to the token that ends with a stop string."""
        pieces = []
        for step in steps:
            pieces.append(self._take([step]))
            if self.finish_reason is not None:
                break
        return "".join(pieces)

    def _take(self, steps: Sequence[StepOutput]) -> str:
        """Book tokens, only the last of which can end the answer; the text they add."""
        last = steps[-1]
        ids = [step.token_id for step in steps]
        self.token_ids += ids
        if last.logprobs is not None:
            self.logprobs += [step.logprobs for step in steps if step.logprobs is not None]
        self.finish_reason = last.finish_reason
        self.stop_reason = last.stop_token_id
        if self.detokenizer is None:
            return ""
        if self.ends_with_hidden_token:
            ids.pop()
        new = self.detokenizer.push(ids)
        if last.finish_reason is not None:
            new += self.detokenizer.finish()
        if not self.params.stop or len(self.token_ids) <= self.params.min_tokens:
            return new  # as in vLLM, stop strings are searched behind the first min_tokens tokens
        piece, stopped = self.stops.push(new)
        if stopped:
            self.finish_reason = "stop"
            self.stop_reason = self.stops.matched
            return piece
        return piece + self.stops.finish() if last.finish_reason is not None else piece

    def metrics(self) -> RequestMetrics:
        """Counts and times so far."""
        return RequestMetrics(
            num_prompt_tokens=self.num_prompt_tokens,
            num_cached_tokens=self.num_cached_tokens,
            num_generated_tokens=len(self.token_ids),
            time_to_first_token_s=self.first_token_at - self.started,
            generation_s=self.last_token_at - self.first_token_at,
        )

    def output(self) -> CompletionOutput:
        """The finished completion."""
        asked = self.params.logprobs is not None
        return CompletionOutput(
            index=self.index,
            text=self.text,
            token_ids=self.token_ids,
            cumulative_logprob=sum(row[0].logprob for row in self.logprobs) if asked else None,
            logprobs=self.logprobs if asked else None,
            finish_reason=self.finish_reason,
            stop_reason=self.stop_reason,
            metrics=self.metrics(),
        )
