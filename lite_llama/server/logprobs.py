"""Log-probabilities in the forms of the OpenAI API."""

from collections.abc import Sequence
from typing import Any

from lite_llama.engine.request import TokenLogprob, TokenLogprobs
from lite_llama.text.tokenizer import Tokenizer

# JSON has no infinity; OpenAI writes this for a token of no probability.
_LOWEST = -9999.0


def token_text(tokenizer: Tokenizer, token_id: int) -> str:
    """A token as text of its own; bytes that are not UTF-8 become U+FFFD."""
    return tokenizer.token_bytes(token_id).decode("utf-8", "replace")


def _value(entry: TokenLogprob) -> float:
    return max(entry.logprob, _LOWEST)


def chat_entry(tokenizer: Tokenizer, row: TokenLogprobs) -> dict[str, Any]:
    """An entry of a chat choice's logprobs.content: the token, then its alternatives."""

    def describe(entry: TokenLogprob) -> dict[str, Any]:
        return {
            "token": token_text(tokenizer, entry.token_id),
            "logprob": _value(entry),
            "bytes": list(tokenizer.token_bytes(entry.token_id)),
        }

    return {**describe(row[0]), "top_logprobs": [describe(entry) for entry in row[1:]]}


def completion_rows(
    tokenizer: Tokenizer, rows: Sequence[TokenLogprobs | None], token_ids: Sequence[int], start: int
) -> dict[str, Any]:
    """The logprobs object of a plain completion whose first token is at character `start`.

    `rows` go with `token_ids`; None is the first token of a prompt, which nothing predicts.
    """
    tokens = [token_text(tokenizer, token) for token in token_ids]
    offsets = []
    for token in tokens:
        offsets.append(start)
        start += len(token)
    return {
        "text_offset": offsets,
        "tokens": tokens,
        "token_logprobs": [None if row is None else _value(row[0]) for row in rows],
        "top_logprobs": [
            None
            if row is None
            else {token_text(tokenizer, entry.token_id): _value(entry) for entry in row[1:]}
            for row in rows
        ],
    }


def prompt_rows(
    tokenizer: Tokenizer, rows: Sequence[TokenLogprobs | None] | None
) -> list[dict[str, Any] | None]:
    """vLLM's prompt_logprobs: for each prompt token a map from token id to its entry."""
    return [
        None
        if row is None
        else {
            str(entry.token_id): {
                "logprob": _value(entry),
                "rank": entry.rank,
                "decoded_token": token_text(tokenizer, entry.token_id),
            }
            for entry in row
        }
        for row in rows or ()
    ]
