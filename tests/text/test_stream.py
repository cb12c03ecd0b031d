import random
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lite_llama.errors import RequestError
from lite_llama.text.stream import IncrementalDetokenizer, StopStrings
from lite_llama.text.tokenizer import Tokenizer
from tests.text.vocabularies import corpus, metadata


@pytest.fixture(scope="module", params=["starcoder", "llama-spm"])
def tokenizer(request: pytest.FixtureRequest) -> Tokenizer:
    return Tokenizer.from_gguf(metadata(request.param))


def chunks(items: list[int] | str, rng: random.Random) -> list:
    at = 0
    parts = []
    while at < len(items):
        size = rng.choice([1, 1, 2, 3, 7])
        parts.append(items[at : at + size])
        at += size
    return parts


def streamed(tokenizer: Tokenizer, parts: list, *, skip: bool) -> list[str]:
    detokenizer = IncrementalDetokenizer(tokenizer, skip_special_tokens=skip)
    return [*(detokenizer.push(part) for part in parts), detokenizer.finish()]


def test_pieces_join_to_the_decoded_text(tokenizer: Tokenizer) -> None:
    rng = random.Random(1)
    for text in corpus():
        ids = tokenizer.encode(text)
        for skip in (True, False):
            whole = tokenizer.decode(ids, skip_special_tokens=skip)
            for parts in ([[index] for index in ids], chunks(ids, rng)):
                pieces = streamed(tokenizer, parts, skip=skip)
                assert "".join(pieces) == whole


def test_pieces_of_random_ids_join_to_the_decoded_text(tokenizer: Tokenizer) -> None:
    rng = random.Random(2)
    for _ in range(1000):
        # The first ids are bytes and control tokens, which make broken characters likely.
        ids = [
            rng.choice([rng.randrange(512), rng.randrange(tokenizer.vocab_size)]) for _ in range(30)
        ]
        for parts in ([[index] for index in ids], chunks(ids, rng)):
            assert "".join(streamed(tokenizer, parts, skip=False)) == tokenizer.decode(
                ids, skip_special_tokens=False
            )


def test_no_piece_splits_a_character(tokenizer: Tokenizer) -> None:
    for text in ("👨‍👩‍👧‍👦🙋🏽‍♀️", "ꦲꦏ꧀ꦱꦫ ꦗꦮ", "𝒳𐍈"):
        ids = tokenizer.encode(text, add_special_tokens=False)
        assert len(ids) > len(text)  # some character is several tokens
        pieces = streamed(tokenizer, [[index] for index in ids], skip=True)
        assert "\ufffd" not in "".join(pieces)
        assert all(piece in text for piece in pieces)


def test_an_unfinished_character_is_held_back_and_flushed_as_a_replacement() -> None:
    tokenizer = Tokenizer.from_gguf(metadata("llama-spm"))
    first, second, third = (3 + byte for byte in "€".encode())
    detokenizer = IncrementalDetokenizer(tokenizer)
    assert [detokenizer.push([first]), detokenizer.push([second])] == ["", ""]
    assert detokenizer.push([third]) == "€"
    assert (detokenizer.push([first]), detokenizer.finish()) == ("", "\ufffd")


def test_text_that_continues_a_prompt_keeps_its_space() -> None:
    tokenizer = Tokenizer.from_gguf(metadata("llama-spm"))
    ids = tokenizer.encode("Paris", add_special_tokens=False)
    assert IncrementalDetokenizer(tokenizer).push(ids) == "Paris"
    assert IncrementalDetokenizer(tokenizer, continues_text=True).push(ids) == " Paris"


def test_detokenizing_takes_linear_time(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("Hello, wörld! " * 15_000)
    detokenizer = IncrementalDetokenizer(tokenizer)
    begin = time.process_time()
    pieces = [detokenizer.push([index]) for index in ids]
    assert time.process_time() - begin < 3.0  # measured: 0.2 s
    assert "".join(pieces) + detokenizer.finish() == tokenizer.decode(ids)


# ---- stop strings ----


def cut(text: str, stops: list[str], *, include_stop: bool) -> tuple[str, bool]:
    """The meaning: end where a stop string is first complete; of several, the longest."""
    for end in range(1, len(text) + 1):
        found = max((len(stop) for stop in stops if text[:end].endswith(stop)), default=0)
        if found:
            return text[: end if include_stop else end - found], True
    return text, False


def run(stops: StopStrings, parts: list[str]) -> tuple[str, bool]:
    emitted, stopped = "", False
    for part in parts:
        text, stopped = stops.push(part)
        emitted += text
    return emitted + stops.finish(), stopped


WORDS = st.text(alphabet="ab\n", min_size=1, max_size=6)


@settings(max_examples=2000, deadline=None)
@given(
    parts=st.lists(st.text(alphabet="ab\n", max_size=8), max_size=12),
    stops=st.lists(WORDS, max_size=4),
    include_stop=st.booleans(),
)
def test_any_chunking_gives_the_text_before_the_first_stop_string(
    parts: list[str], stops: list[str], *, include_stop: bool
) -> None:
    expected = cut("".join(parts), stops, include_stop=include_stop)
    assert run(StopStrings(stops, include_stop=include_stop), parts) == expected
    if not include_stop and stops:
        assert not any(stop in expected[0] for stop in stops)


def test_only_what_may_become_a_stop_string_is_held_back() -> None:
    stops = StopStrings(["</s>", "\n\nUser:"])
    assert stops.push("Hello <") == ("Hello ", False)
    assert stops.push("b> x\n\n") == ("<b> x", False)
    assert stops.push("User") == ("", False)
    assert stops.push("s\n\nUse") == ("\n\nUsers", False)
    assert stops.push("r: hi") == ("", True)
    assert stops.push("more") == ("", True)
    assert stops.finish() == ""


def test_a_stop_string_can_be_kept() -> None:
    assert run(StopStrings(["END"], include_stop=True), ["a E", "ND b"]) == ("a END", True)


def test_text_without_stop_strings_passes_at_once() -> None:
    assert StopStrings([]).push("abc") == ("abc", False)


def test_an_empty_stop_string_is_refused() -> None:
    with pytest.raises(RequestError, match="empty") as caught:
        StopStrings(["a", ""])
    assert caught.value.param == "stop"


def test_nearly_matching_text_takes_linear_time() -> None:
    stops = StopStrings(["a" * 255 + "b"] * 16)
    begin = time.process_time()
    emitted = "".join(stops.push("a")[0] for _ in range(20_000)) + stops.finish()
    assert time.process_time() - begin < 3.0  # measured: 0.1 s
    assert emitted == "a" * 20_000
