"""Structured output: which tokens may come next for an answer to be JSON, or to match a regex.

llguidance does the work; this module bounds it. A client's schema is hostile input: its size and
depth are checked first, compiling has a time limit and runs in a thread, and what is kept is
bounded in number and in bytes. A grammar that breaks while it runs ends its own request only.
"""

import asyncio
import functools
import json
from collections import OrderedDict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, Literal, TypeVar

import numpy as np
from llguidance import LLMatcher, LLParserLimits, LLTokenizer, TokenizerWrapper
from numpy.typing import NDArray

from lite_llama.errors import RequestError
from lite_llama.text.tokenizer import Tokenizer

MAX_SCHEMA_BYTES = 64 << 10
MAX_SCHEMA_DEPTH = 32
MAX_SCHEMA_NODES = 5000
MAX_ENUM = 4096
MAX_REGEX_BYTES = 512
COMPILE_LIMIT_S = 0.5
MAX_CACHED = 256
MAX_CACHED_BYTES = 64 << 20
# llguidance reports no size; its automata are of the order of this times the source, at least.
_BYTES_PER_SOURCE_BYTE = 64
_MIN_CACHED_BYTES = 32 << 10
_TYPES = frozenset({"object", "array", "string", "number", "integer", "boolean", "null"})
# Keywords that hold values, not schemas.
_VALUES = frozenset({"const", "enum", "default", "examples"})
_NUM_WORKERS = 2
_MAX_KEPT_TEXTS = 4096
_MAX_KEPT_LENGTH = 64
# As json.dumps writes it. Free white space lets a model at a high temperature go on for ever.
_JSON_STYLE: Any = {
    "whitespace_flexible": False,
    "item_separator": ", ",
    "key_separator": ": ",
}

T = TypeVar("T")


@dataclass(frozen=True)
class GrammarSpec:
    """What an answer must match: a JSON schema (as text), or a regular expression."""

    kind: Literal["json_schema", "regex"]
    source: str


def json_schema_spec(schema: Any, param: str) -> GrammarSpec:
    """The spec of a JSON schema; RequestError if it passes a bound or is not a schema."""
    if not isinstance(schema, dict):
        raise RequestError("the schema is not a JSON object", param=param)
    source = json.dumps(schema, ensure_ascii=False)
    if len(source.encode()) > MAX_SCHEMA_BYTES:
        raise RequestError(
            f"the schema has {len(source.encode())} bytes, limit {MAX_SCHEMA_BYTES}; shorten it",
            param=param,
        )
    _check_schema(schema, param)
    return GrammarSpec("json_schema", source)


def regex_spec(pattern: str, param: str) -> GrammarSpec:
    """The spec of a regular expression; RequestError if it is too long."""
    size = len(pattern.encode())
    if not 0 < size <= MAX_REGEX_BYTES:
        raise RequestError(
            f"regex has {size} bytes, limit 1..{MAX_REGEX_BYTES}; shorten it", param=param
        )
    return GrammarSpec("regex", pattern)


def _check_schema(schema: Any, param: str) -> None:
    num_nodes = 0
    pending = [(schema, 1, True)]
    while pending:
        node, depth, is_schema = pending.pop()
        num_nodes += 1
        if depth > MAX_SCHEMA_DEPTH or num_nodes > MAX_SCHEMA_NODES:
            raise RequestError(
                f"the schema is limited to {MAX_SCHEMA_NODES} nodes and {MAX_SCHEMA_DEPTH} levels;"
                " simplify it",
                param=param,
            )
        if isinstance(node, dict):
            if is_schema:
                _check_keywords(node, param)
            pending += [
                (value, depth + 1, is_schema and key not in _VALUES) for key, value in node.items()
            ]
        elif isinstance(node, list):
            if len(node) > MAX_ENUM:
                raise RequestError(
                    f"a list of the schema has {len(node)} entries, limit {MAX_ENUM}", param=param
                )
            pending += [(value, depth + 1, is_schema) for value in node]


def _check_keywords(node: dict[str, Any], param: str) -> None:
    reference = node.get("$ref")
    if isinstance(reference, str) and not reference.startswith("#"):
        raise RequestError(
            "the schema has a $ref that is not local (#/...); nothing is fetched", param=param
        )
    if "x-guidance" in node:
        raise RequestError("the schema has x-guidance; leave it out", param=param)
    kinds = node.get("type")
    for kind in kinds if isinstance(kinds, list) else [kinds]:
        if isinstance(kind, str) and kind not in _TYPES:
            raise RequestError(
                f"the schema has type {kind[:40]!r}, expected one of {', '.join(sorted(_TYPES))}",
                param=param,
            )


class Matcher:
    """One answer under a grammar (the engine's `Grammar`)."""

    def __init__(self, matcher: LLMatcher) -> None:
        self._matcher = matcher

    @staticmethod
    def fill_masks(grammars: "Mapping[int, Matcher]", words: NDArray[np.int32]) -> dict[int, str]:
        """See `Grammar.fill_masks`.

        One after the other: on llguidance's own threads it takes longer (docs/lab/serving.md).
        """
        first, row_bytes = words.ctypes.data, words.strides[0]
        for row, grammar in grammars.items():
            # What llguidance.numpy does, whose way to the address takes as long as the mask.
            grammar._matcher.unsafe_compute_mask_ptr(first + row * row_bytes, row_bytes)
        broken = {row: one._matcher for row, one in grammars.items() if one._matcher.is_error()}
        return {row: matcher.get_error() for row, matcher in broken.items()}

    def accept(self, token_id: int) -> None:
        """Go on behind `token_id`; RuntimeError if the grammar cannot."""
        self._matcher.consume_token(token_id)
        if self._matcher.is_error():
            raise RuntimeError(self._matcher.get_error())


class GrammarCompiler:
    """Compiles specs for one tokenizer, in worker threads, and keeps the latest.

    `vocab_size` is the model's, which may exceed the tokenizer's; `eos_ids` end an answer.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_ids: Iterable[int]) -> None:
        self._tokenizer = tokenizer
        self._vocab_size = vocab_size
        self._eos_ids = sorted(eos_ids)
        self._ll_tokenizer: LLTokenizer | None = None
        self._cache: OrderedDict[GrammarSpec, LLMatcher] = OrderedDict()
        self._cached_bytes = 0
        self._workers = ThreadPoolExecutor(_NUM_WORKERS, "grammar")
        self._limits = LLParserLimits(max_lexer_states=50_000, verbose_errors=False)

    def __len__(self) -> int:
        return len(self._cache)

    async def compile(self, spec: GrammarSpec) -> Callable[[], Matcher]:
        """A maker of matchers; RequestError if the spec is no grammar, or takes too long."""
        kept = self._cache.get(spec)
        if kept is None:
            if self._ll_tokenizer is None:  # once, and not on the client's time
                await self._run(self._tokens)
            kept = await self._compile_in_time(spec)
            self._keep(spec, kept)
        else:
            self._cache.move_to_end(spec)
        found = kept
        return lambda: Matcher(found.deep_copy())

    async def _compile_in_time(self, spec: GrammarSpec) -> LLMatcher:
        param = "regex" if spec.kind == "regex" else "response_format"
        work = asyncio.ensure_future(self._run(lambda: self._compile(spec)))
        done, _ = await asyncio.wait((work,), timeout=COMPILE_LIMIT_S)
        if not done:
            work.cancel()
            raise RequestError(
                f"the grammar took over {COMPILE_LIMIT_S * 1e3:.0f} ms to compile; simplify it",
                param=param,
            )
        matcher = work.result()
        if matcher.is_error():
            reason = " ".join(matcher.get_error().split())[:200]
            raise RequestError(f"the grammar cannot be used: {reason}", param=param)
        return matcher

    async def _run(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._workers, work)

    def _compile(self, spec: GrammarSpec) -> LLMatcher:
        if spec.kind == "regex":
            grammar = LLMatcher.grammar_from_regex(spec.source)
        else:
            grammar = LLMatcher.grammar_from_json_schema(spec.source, overrides=_JSON_STYLE)
        matcher = LLMatcher(self._tokens(), grammar, log_level=0, limits=self._limits)
        if not matcher.is_error():
            matcher.compute_bitmask()  # the first mask is the slowest; it counts as compiling
        return matcher

    def _tokens(self) -> LLTokenizer:
        if self._ll_tokenizer is None:
            self._ll_tokenizer = LLTokenizer(
                TokenizerWrapper(_Vocabulary(self._tokenizer, self._vocab_size, self._eos_ids[0])),
                eos_token=self._eos_ids,
            )
        return self._ll_tokenizer

    def _keep(self, spec: GrammarSpec, matcher: LLMatcher) -> None:
        self._cache[spec] = matcher
        self._cached_bytes += _size(spec)
        while len(self._cache) > MAX_CACHED or self._cached_bytes > MAX_CACHED_BYTES:
            oldest, _ = self._cache.popitem(last=False)
            self._cached_bytes -= _size(oldest)


def _size(spec: GrammarSpec) -> int:
    return max(_MIN_CACHED_BYTES, _BYTES_PER_SOURCE_BYTE * len(spec.source))


class _Vocabulary:
    """A Tokenizer in the shape that llguidance reads.

    A model's vocabulary is often padded beyond its tokenizer's: padding has no bytes, and is never
    allowed.
    """

    def __init__(self, tokenizer: Tokenizer, vocab_size: int, eos_id: int) -> None:
        ids = range(min(vocab_size, tokenizer.vocab_size))
        self.eos_token_id = eos_id
        self.bos_token_id = tokenizer.bos_id
        self.tokens = [tokenizer.token_bytes(index) for index in ids]
        self.tokens += [b""] * (vocab_size - len(ids))
        self.special_token_ids = [index for index in ids if tokenizer.is_special(index)]
        self._encode = functools.partial(
            tokenizer.encode, add_special_tokens=False, parse_special=False
        )
        self._encode_again = functools.lru_cache(_MAX_KEPT_TEXTS)(self._encode)

    def __call__(self, text: str) -> list[int]:
        """The tokens of what a grammar forces, mostly a few characters, and often the same."""
        return (self._encode_again if len(text) <= _MAX_KEPT_LENGTH else self._encode)(text)
