"""What a serving benchmark asks: random texts, texts with a common beginning, or a trace."""

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from lite_llama.errors import ConfigError

# Common English words; in every tokenizer met so far each is one token with its space.
_WORDS = [
    "time",
    "year",
    "people",
    "way",
    "day",
    "man",
    "thing",
    "woman",
    "life",
    "child",
    "world",
    "school",
    "state",
    "family",
    "student",
    "group",
    "country",
    "problem",
    "hand",
    "part",
    "place",
    "case",
    "week",
    "company",
    "system",
    "program",
    "question",
    "work",
    "night",
    "point",
    "home",
    "water",
    "room",
    "mother",
    "area",
    "money",
    "story",
    "fact",
    "month",
    "lot",
    "right",
    "study",
    "book",
    "eye",
    "job",
    "word",
    "business",
]


@dataclass(frozen=True)
class Ask:
    """One request: its prompt, and how many tokens to generate."""

    prompt: str
    num_tokens: int


def random_texts(num_requests: int, prompt_len: int, gen_len: int, seed: int) -> list[Ask]:
    """Texts of about prompt_len tokens that share nothing."""
    draw = random.Random(seed)
    return [Ask(_text(draw, prompt_len), gen_len) for _ in range(num_requests)]


def shared_prefix(num_requests: int, prompt_len: int, gen_len: int, seed: int) -> list[Ask]:
    """Texts whose first three quarters are the same, as under one system message."""
    draw = random.Random(seed)
    common = _text(draw, prompt_len * 3 // 4)
    rest = prompt_len - prompt_len * 3 // 4
    return [Ask(f"{common} {_text(draw, rest)}", gen_len) for _ in range(num_requests)]


def trace(path: Path, gen_len: int) -> list[Ask]:
    """Lines of JSON: {"prompt": text, "max_tokens": number}, the number being optional."""
    asks = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        try:
            entry = json.loads(line)
            asks.append(Ask(str(entry["prompt"]), int(entry.get("max_tokens", gen_len))))
        except (ValueError, KeyError, TypeError):
            raise ConfigError(
                f"{path}, line {number}: expected a JSON object with a prompt"
            ) from None
    return asks


def choose(name: str, sizes: Sequence[int], seed: int, trace_path: Path | None) -> list[Ask]:
    """A workload by name; `sizes`: number of requests, prompt tokens, generated tokens."""
    num_requests, prompt_len, gen_len = sizes
    if name == "random":
        return random_texts(num_requests, prompt_len, gen_len, seed)
    if name == "shared-prefix":
        return shared_prefix(num_requests, prompt_len, gen_len, seed)
    if name == "trace" and trace_path is not None:
        return trace(trace_path, gen_len)[:num_requests]
    raise ConfigError(
        f"--workload is {name!r}, expected random, shared-prefix, or trace with --trace FILE"
    )


def _text(draw: random.Random, num_words: int) -> str:
    return " ".join(draw.choices(_WORDS, k=num_words))
