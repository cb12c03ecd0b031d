"""How a request's tokens are drawn and when it ends. Names and meanings are vLLM's."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from lite_llama.errors import RequestError

MAX_COMPLETIONS = 16
MAX_LOGPROBS = 20
MAX_STOP_STRINGS = 16
MAX_STOP_BYTES = 256
MAX_STOP_TOKEN_IDS = 64
MAX_LOGIT_BIASES = 1024

# field: (lower bound, upper bound, whether the lower bound itself is out)
_REAL_BOUNDS: Mapping[str, tuple[float, float, bool]] = {
    "temperature": (0.0, 2.0, False),
    "top_p": (0.0, 1.0, True),
    "min_p": (0.0, 1.0, False),
    "presence_penalty": (-2.0, 2.0, False),
    "frequency_penalty": (-2.0, 2.0, False),
    # Below, logits divided by it leave the range of float32.
    "repetition_penalty": (0.01, 2.0, False),
}
_WHOLE_BOUNDS: Mapping[str, tuple[int, int]] = {
    "n": (1, MAX_COMPLETIONS),
    "top_k": (-1, 2**31 - 1),
    "seed": (-(2**63), 2**63 - 1),
    "max_tokens": (1, 2**31 - 1),
    "min_tokens": (0, 2**31 - 1),
    "logprobs": (0, MAX_LOGPROBS),
    "prompt_logprobs": (0, MAX_LOGPROBS),
}
_OPTIONAL = ("seed", "max_tokens", "logprobs", "prompt_logprobs")


@dataclass(frozen=True)
class SamplingParams:
    """Sampling settings of one request; every value is checked when the object is made.

    n: completions of the prompt (1 when temperature is 0 and no seed is given).
    temperature: 0 is greedy. top_k: −1 or 0 keeps all. top_p, min_p: nucleus and relative cut.
    presence, frequency, repetition penalty: see `ops.apply_penalties`.
    logit_bias: token id -> addend in [−100, 100]. seed: None draws one at random.
    max_tokens: None generates up to the context's end. min_tokens: no end before so many tokens.
    stop: strings that end the text (not part of it unless include_stop_str_in_output).
    stop_token_ids: ids that end it, besides the model's own, which ignore_eos switches off.
    logprobs, prompt_logprobs: how many alternatives to report per token; None reports nothing.
    """

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = -1
    min_p: float = 0.0
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    logit_bias: Mapping[int, float] | None = None
    seed: int | None = None
    max_tokens: int | None = 16
    min_tokens: int = 0
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] = ()
    ignore_eos: bool = False
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    skip_special_tokens: bool = True
    include_stop_str_in_output: bool = False

    def __post_init__(self) -> None:
        for name, bounds in _REAL_BOUNDS.items():
            _check_real(name, getattr(self, name), bounds)
        for name, (low, high) in _WHOLE_BOUNDS.items():
            value = getattr(self, name)
            if value is not None or name not in _OPTIONAL:
                _check_whole(name, value, low, high)
        for name in ("ignore_eos", "skip_special_tokens", "include_stop_str_in_output"):
            if not isinstance(getattr(self, name), bool):
                raise RequestError(f"{name} is not true or false; give one of them", param=name)
        if self.n > 1 and self.temperature == 0 and self.seed is None:
            raise RequestError(
                f"n is {self.n} with temperature 0, which gives the same text {self.n} times; "
                "raise temperature or ask for n = 1",
                param="n",
            )
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestError(
                f"min_tokens is {self.min_tokens}, limit max_tokens = {self.max_tokens}; "
                "lower min_tokens",
                param="min_tokens",
            )
        if not isinstance(self.stop, str | tuple | list | None):
            raise RequestError(
                f"stop is {_shown(self.stop)}, expected a string or a list of strings", param="stop"
            )
        _check_stops(self.stop_strings)
        _check_token_ids(self.stop_token_ids)
        _check_bias(self.logit_bias)

    @property
    def stop_strings(self) -> tuple[str, ...]:
        """`stop` as a tuple, whichever form it was given in."""
        if self.stop is None:
            return ()
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop)

    @property
    def has_penalties(self) -> bool:
        """Whether any penalty changes the logits."""
        return bool(
            self.presence_penalty or self.frequency_penalty or self.repetition_penalty != 1.0
        )

    def check_vocabulary(self, vocab_size: int) -> None:
        """Raise RequestError if a token id lies outside the vocabulary."""
        named = {"stop_token_ids": self.stop_token_ids, "logit_bias": tuple(self.logit_bias or ())}
        for name, ids in named.items():
            for token in ids:
                if not 0 <= token < vocab_size:
                    raise RequestError(
                        f"{name} has token id {token}, limit 0..{vocab_size - 1}; "
                        "use ids of this model's vocabulary",
                        param=name,
                    )


def _check_real(name: str, value: Any, bounds: tuple[float, float, bool]) -> None:
    low, high, open_below = bounds
    number = isinstance(value, int | float) and not isinstance(value, bool)
    # NaN compares false with everything, so it fails here too.
    if number and low <= value <= high and not (open_below and value == low):
        return
    bracket = "(" if open_below else "["
    raise RequestError(
        f"{name} is {_shown(value)}, limit {bracket}{low:g}, {high:g}]; give one in that range",
        param=name,
    )


def _check_whole(name: str, value: Any, low: int, high: int) -> None:
    if isinstance(value, int) and not isinstance(value, bool) and low <= value <= high:
        return
    raise RequestError(
        f"{name} is {_shown(value)}, limit {low}..{high}; give an integer in that range",
        param=name,
    )


def _check_stops(stops: tuple[Any, ...]) -> None:
    if len(stops) > MAX_STOP_STRINGS:
        raise RequestError(
            f"stop has {len(stops)} strings, limit {MAX_STOP_STRINGS}; give fewer", param="stop"
        )
    for stop in stops:
        if not isinstance(stop, str) or not stop:
            raise RequestError(
                f"stop has {_shown(stop)}, expected a non-empty string; remove it", param="stop"
            )
        size = len(stop.encode(errors="replace"))
        if size > MAX_STOP_BYTES:
            raise RequestError(
                f"a stop string has {size} bytes, limit {MAX_STOP_BYTES}; shorten it", param="stop"
            )


def _check_token_ids(ids: Any) -> None:
    name = "stop_token_ids"
    if not isinstance(ids, tuple | list):
        raise RequestError(f"{name} is {_shown(ids)}, expected a list of token ids", param=name)
    if len(ids) > MAX_STOP_TOKEN_IDS:
        raise RequestError(
            f"{name} has {len(ids)} entries, limit {MAX_STOP_TOKEN_IDS}; give fewer", param=name
        )
    for token in ids:
        _check_whole(name, token, 0, 2**31 - 1)


def _check_bias(bias: Any) -> None:
    if bias is None:
        return
    name = "logit_bias"
    if not isinstance(bias, Mapping):
        raise RequestError(
            f"{name} is {_shown(bias)}, expected a map from token id to bias", param=name
        )
    if len(bias) > MAX_LOGIT_BIASES:
        raise RequestError(
            f"{name} has {len(bias)} entries, limit {MAX_LOGIT_BIASES}; give fewer", param=name
        )
    for token, value in bias.items():
        _check_whole(name, token, 0, 2**31 - 1)
        _check_real(name, value, (-100.0, 100.0, False))


def _shown(value: Any) -> str:
    """A value fit for a one-line message; of what is no plain value, only its type."""
    if isinstance(value, int) and value.bit_length() > 128:
        return f"an integer of {value.bit_length()} bits"
    if value is not None and not isinstance(value, bool | int | float | str):
        return f"a {type(value).__name__}"
    text = repr(value)
    return text if len(text) <= 40 else text[:37] + "..."
