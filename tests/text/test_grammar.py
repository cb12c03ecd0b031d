"""Structured output: answers drawn at random under a mask satisfy their schema."""

import asyncio
import itertools
import json
import random
import re
import time
from typing import Any

import jsonschema
import numpy as np
import psutil
import pytest
from numpy.typing import NDArray

from lite_llama.errors import RequestError
from lite_llama.text import grammar
from lite_llama.text.grammar import (
    MAX_CACHED,
    GrammarCompiler,
    GrammarSpec,
    Matcher,
    json_schema_spec,
    regex_spec,
)
from lite_llama.text.tokenizer import Tokenizer
from tests.text.vocabularies import smollm2_metadata

EOS = 2


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.from_gguf(smollm2_metadata())


@pytest.fixture(scope="module")
def compiler(tokenizer: Tokenizer) -> GrammarCompiler:
    return GrammarCompiler(tokenizer, tokenizer.vocab_size, [EOS, 0])


def start(compiler: GrammarCompiler, spec: GrammarSpec) -> Matcher:
    return asyncio.run(compiler.compile(spec))()


def tokens_in(words: NDArray[np.int32]) -> list[int]:
    bits = np.unpackbits(words.view(np.uint8), bitorder="little")
    found: list[int] = np.flatnonzero(bits).tolist()
    return found


def allowed(matcher: Matcher, vocab_size: int) -> list[int]:
    words = np.full((1, -(-vocab_size // 32)), -1, dtype=np.int32)
    if errors := Matcher.fill_masks({0: matcher}, words):
        raise RuntimeError(errors[0])
    return tokens_in(words[0])


def draw(matcher: Matcher, tokenizer: Tokenizer, seed: int, limit: int) -> str | None:
    """A random answer; None if it has not ended within `limit` tokens."""
    chance = random.Random(seed)
    ids: list[int] = []
    for _ in range(limit):
        choices = allowed(matcher, tokenizer.vocab_size)
        ending = [token for token in choices if token in (EOS, 0)]
        token = ending[0] if ending and chance.random() < 0.5 else chance.choice(choices)
        if token in (EOS, 0):
            return tokenizer.decode(ids)
        matcher.accept(token)
        ids.append(token)
    return None


def short(**schema: Any) -> dict[str, Any]:
    return {"type": "string", "maxLength": 6, **schema}


def record(properties: dict[str, Any], **further: Any) -> dict[str, Any]:
    return {
        "type": "object",
        "properties": properties,
        "required": list(properties),
        "additionalProperties": False,
        **further,
    }


LEAVES: list[dict[str, Any]] = [
    short(),
    {"type": "integer", "minimum": -5, "maximum": 120},
    {"type": "number", "minimum": 0, "maximum": 9},
    {"type": "boolean"},
    {"type": "null"},
    {"enum": ["red", "green", 3, None, True]},
    {"const": {"fixed": [1, 2]}},
    {"type": "string", "pattern": "^[a-c]{2,4}$"},
    {"type": "string", "pattern": "^\\d{3}-\\d{2}$"},
    {"type": "string", "format": "date"},
    {"type": ["boolean", "null"]},
    {"anyOf": [{"type": "boolean"}, {"const": "neither"}]},
]
SCHEMAS: list[dict[str, Any]] = [
    *LEAVES,
    *(record({"value": leaf}) for leaf in LEAVES),
    *({"type": "array", "items": leaf, "minItems": 1, "maxItems": 3} for leaf in LEAVES),
    *(
        record({"a": first, "b": record({"c": second})})
        for first, second in itertools.pairwise(LEAVES)
    ),
    record({"kind": {"enum": ["x", "y"]}}, **{"$defs": {"n": {"type": "integer"}}}),
    record(
        {"left": {"$ref": "#/$defs/point"}, "right": {"$ref": "#/$defs/point"}},
        **{"$defs": {"point": record({"x": {"type": "integer", "minimum": 0, "maximum": 9}})}},
    ),
    {"anyOf": [record({"a": {"type": "boolean"}}), record({"b": {"type": "null"}})]},
    {
        "type": "array",
        "prefixItems": [{"type": "boolean"}, {"type": "null"}],
        "items": False,
        "minItems": 2,
    },
    {"allOf": [{"type": "integer", "minimum": 1}, {"maximum": 4}]},
    record({"ключ": {"enum": ["значение", "日本"]}}),
    {"type": "array", "items": {"enum": [1, 2]}, "minItems": 2, "maxItems": 2},
]


# For a soak: every pair of leaves besides.
MANY_SCHEMAS: list[dict[str, Any]] = [
    *SCHEMAS,
    *(record({"a": first, "b": second}) for first, second in itertools.product(LEAVES, LEAVES)),
    *(record({"one": {"anyOf": [leaf, {"type": "null"}]}}) for leaf in LEAVES),
]


@pytest.mark.parametrize("number", range(len(SCHEMAS)))
def test_every_finished_answer_satisfies_its_schema(
    compiler: GrammarCompiler, tokenizer: Tokenizer, number: int
) -> None:
    """S1, with a model that draws any allowed token."""
    schema = SCHEMAS[number]
    spec = json_schema_spec(schema, "response_format")
    texts = [draw(start(compiler, spec), tokenizer, seed, 120) for seed in range(4)]
    finished = [text for text in texts if text is not None]
    assert finished
    for text in finished:
        jsonschema.validate(json.loads(text), schema)


def test_there_are_over_50_schemas_and_200_for_a_soak() -> None:
    assert len(SCHEMAS) >= 50
    assert len(MANY_SCHEMAS) >= 200


@pytest.mark.parametrize(
    "schema",
    [
        {"oneOf": [{"const": 1}, {"const": 2}]},
        {"not": {"type": "string"}},
        {"type": "array", "uniqueItems": True, "contains": {"const": 1}},
        {"if": {"type": "string"}, "then": {"const": "a"}},
    ],
)
def test_an_unsupported_keyword_is_refused(
    compiler: GrammarCompiler, schema: dict[str, Any]
) -> None:
    with pytest.raises(RequestError) as caught:
        start(compiler, json_schema_spec(schema, "response_format"))
    assert caught.value.param == "response_format"


def test_a_regex_is_matched_by_every_answer(
    compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    for pattern in (r"[ab]{3}c?", r"(Yes|No)\.", r"\d+ (apples|pears)", r"[^ -~]{2}"):
        spec = regex_spec(pattern, "regex")
        texts = [draw(start(compiler, spec), tokenizer, seed, 40) for seed in range(4)]
        assert any(texts)
        assert all(re.fullmatch(pattern, text) for text in texts if text is not None)


def test_the_mask_covers_the_models_vocabulary(tokenizer: Tokenizer) -> None:
    for more in (1, 64):
        wide = GrammarCompiler(tokenizer, tokenizer.vocab_size + more, [EOS])
        plain = GrammarCompiler(tokenizer, tokenizer.vocab_size, [EOS])
        for pattern in ("a*", "(?s:.*)"):
            spec = regex_spec(pattern, "regex")
            tokens = allowed(start(wide, spec), tokenizer.vocab_size + more)
            assert tokens == allowed(start(plain, spec), tokenizer.vocab_size)
            assert max(tokens) < tokenizer.vocab_size


def test_control_tokens_are_never_text(compiler: GrammarCompiler, tokenizer: Tokenizer) -> None:
    matcher = start(compiler, regex_spec("(?s:.*)", "regex"))
    control = {index for index in range(tokenizer.vocab_size) if tokenizer.is_special(index)}
    assert control & set(allowed(matcher, tokenizer.vocab_size)) <= {EOS, 0}


def test_a_token_outside_the_grammar_is_an_error_of_its_matcher(
    compiler: GrammarCompiler, tokenizer: Tokenizer
) -> None:
    spec = regex_spec("[0-9]+", "regex")
    broken, sound = start(compiler, spec), start(compiler, spec)
    with pytest.raises(RuntimeError):
        broken.accept(tokenizer.encode("x")[0])
    sound.accept(tokenizer.encode("7")[0])
    words = np.full((4, -(-tokenizer.vocab_size // 32)), -1, dtype=np.int32)
    errors = Matcher.fill_masks({3: broken, 1: sound}, words)
    assert list(errors) == [3]
    assert errors[3]
    assert tokens_in(words[1]) == allowed(sound, tokenizer.vocab_size)
    assert (words[[0, 2]] == -1).all(), "rows without a grammar are left alone"


def nested(depth: int) -> dict[str, Any]:
    schema: dict[str, Any] = {"type": "null"}
    for _ in range(depth):
        schema = {"type": "array", "items": schema}
    return schema


RECURSIVE = {"$ref": "#/$defs/t", "$defs": {"t": {"type": "array", "items": {"$ref": "#/$defs/t"}}}}
SELF = {"$ref": "#"}


# Regular expressions, or schemas, that have brought servers down.
HOSTILE: list[tuple[str, Any]] = [
    ("regex", "(a+)+b"),
    ("regex", "(a{1000}){1000}"),
    ("regex", "(" * 30_000 + ")" * 30_000),
    ("regex", "(" * 250 + ")" * 250),
    ("regex", "(.*a){200}"),
    ("regex", "["),
    ("regex", "(?=a)"),
    ("regex", ""),
    ("schema", {"enum": [str(i) for i in range(50_000)]}),
    ("schema", {"enum": [str(i) for i in range(4000)]}),
    ("schema", RECURSIVE),
    ("schema", SELF),
    ("schema", {"type": "spam"}),
    ("schema", {"type": 5}),
    ("schema", nested(12)),
    ("schema", nested(500)),
    ("schema", {"$ref": "https://example.com/s"}),
    ("schema", {"type": "string", "pattern": "(a{1000}){1000}"}),
    ("schema", {"type": "string", "pattern": "(a+)+$"}),
    ("schema", {"type": "array", "minItems": 10**6}),
    ("schema", {"type": "string", "minLength": 10**9}),
    ("schema", {"x-guidance": {"coerce_one_of": True}}),
    ("schema", {"not": {"type": "string"}}),
    ("schema", []),
    ("schema", {"properties": {str(i): {} for i in range(3000)}}),
]


@pytest.mark.parametrize(("kind", "source"), HOSTILE, ids=lambda value: str(value)[:20])
def test_hostile_grammars_end_within_a_second_or_are_refused(
    compiler: GrammarCompiler, tokenizer: Tokenizer, kind: str, source: Any
) -> None:
    """S2."""
    begun = time.perf_counter()
    try:
        spec = regex_spec(source, "regex") if kind == "regex" else json_schema_spec(source, "x")
        matcher = start(compiler, spec)
        for _ in range(3):
            choices = allowed(matcher, tokenizer.vocab_size)
            if choices[0] in (0, EOS):
                break
            matcher.accept(choices[0])
    except (RequestError, RuntimeError):
        pass  # a clean refusal
    assert time.perf_counter() - begun < 1.5


def test_a_compilation_that_takes_too_long_is_refused(
    compiler: GrammarCompiler, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grammar, "COMPILE_LIMIT_S", 0.05)
    compile_ = GrammarCompiler._compile

    def slow(self: GrammarCompiler, spec: GrammarSpec) -> Any:
        time.sleep(0.2)
        return compile_(self, spec)

    monkeypatch.setattr(GrammarCompiler, "_compile", slow)
    with pytest.raises(RequestError, match="50 ms"):
        start(compiler, regex_spec("too-slow", "regex"))


def test_the_cache_is_bounded_and_memory_stays_flat(tokenizer: Tokenizer) -> None:
    """S3, with 900 of its 5 000 schemas."""
    compiler = GrammarCompiler(tokenizer, tokenizer.vocab_size, [EOS])
    process = psutil.Process()

    async def compile_all(numbers: range) -> None:
        for number in numbers:
            schema = record({f"field{number}": {"type": "integer"}})
            (await compiler.compile(json_schema_spec(schema, "x")))()

    asyncio.run(compile_all(range(400)))
    assert len(compiler) == MAX_CACHED
    before = process.memory_info().rss
    asyncio.run(compile_all(range(400, 900)))
    assert len(compiler) == MAX_CACHED
    assert process.memory_info().rss - before < 40e6
