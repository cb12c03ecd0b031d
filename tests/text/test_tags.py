import json
import random
import time

import pytest

from lite_llama.text.tags import (
    JsonCalls,
    ReasoningSplitter,
    TagFinder,
    TaggedCalls,
    ToolCall,
    join_calls,
    read_arguments,
)

NAMES = {"weather", "add"}
CALL = '<tool_call>\n{"name": "weather", "arguments": {"city": "Köln"}}\n</tool_call>'
WEATHER = ToolCall("weather", '{"city": "Köln"}')


def cut(text: str, seed: int) -> list[str]:
    draw = random.Random(seed)
    pieces = []
    while text:
        size = draw.randint(1, 9)
        pieces.append(text[:size])
        text = text[size:]
    return pieces


def split(pieces: list[str], *, inside: bool = False) -> tuple[str, str]:
    splitter = ReasoningSplitter(inside=inside)
    parts = [splitter.push(piece) for piece in pieces] + [splitter.finish()]
    return "".join(part[0] for part in parts), "".join(part[1] for part in parts)


def calls_of(parser: TaggedCalls | JsonCalls, pieces: list[str]) -> tuple[str, list[ToolCall]]:
    parts = [parser.push(piece) for piece in pieces] + [parser.finish()]
    return "".join(part[0] for part in parts), join_calls(
        call for part in parts for call in part[1]
    )


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(
    ("text", "inside", "reasoning", "content"),
    [
        ("plain answer", False, "", "plain answer"),
        ("<think>\nwhy\n</think>\n\nbecause", False, "why\n", "because"),
        ("  \n<think>why</think>because", False, "why", "because"),
        ("why</think>\n\nbecause <think> too", True, "why", "because <think> too"),
        ("never ended </thin", True, "never ended </thin", ""),
        ("<think>a < b </ think></think>ok", False, "a < b </ think>", "ok"),
        ("<thin ice", False, "", "<thin ice"),
        (" " * 70 + "<think>late", False, "", " " * 70 + "<think>late"),
        ("<think></think>only", False, "", "only"),
        ("   ", False, "", "   "),
    ],
)
def test_reasoning_is_what_stands_between_think_tags(
    text: str, *, inside: bool, reasoning: str, content: str, seed: int
) -> None:
    assert split(cut(text, seed), inside=inside) == (reasoning, content)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        (CALL, "", [WEATHER]),
        (f"Let me see.\n{CALL}\n{CALL}", "Let me see.", [WEATHER, WEATHER]),
        ("a < b <tool", "a < b <tool", []),
        ("no call  ", "no call  ", []),
        (CALL.replace("weather", "unknown"), CALL.replace("weather", "unknown"), []),
        ("<tool_call>not json</tool_call>", "<tool_call>not json</tool_call>", []),
        (CALL.removesuffix("</tool_call>"), "", [WEATHER]),
        ("<tool_call>{'name': 'add'}</tool_call>", "<tool_call>{'name': 'add'}</tool_call>", []),
        (
            '<tool_call>{"name":"add","arguments":"{\\"x\\":1}"}</tool_call>',
            "",
            [ToolCall("add", '{"x": 1}')],
        ),
        (
            '<tool_call>{"name":"add","arguments":{"x":NaN}}</tool_call>',
            "",
            [ToolCall("add", '{"x":NaN}')],  # no JSON, but it was on its way to the client
        ),
        (
            '<tool_call>{"arguments":{"x":NaN},"name":"add"}</tool_call>',
            '<tool_call>{"arguments":{"x":NaN},"name":"add"}</tool_call>',
            [],
        ),
        (
            '<tool_call>{"arguments": {"x": 1}, "name": "add"}</tool_call> done',
            " done",
            [ToolCall("add", '{"x": 1}')],
        ),
        ('<tool_call>{"name":"add","arguments":{"x', "", [ToolCall("add", '{"x')]),
        (
            '<tool_call>{"name": "add", "arguments": {"x": "}\\"{"}, "id": {"y": 2}}</tool_call>',
            "",
            [ToolCall("add", '{"x": "}\\"{"}')],
        ),
        (
            '<tool_call>{"name":"add","arguments":[1]}</tool_call>',
            '<tool_call>{"name":"add","arguments":[1]}</tool_call>',
            [],
        ),
    ],
)
def test_tagged_calls_are_found_wherever_the_text_is_cut(
    text: str, content: str, calls: list[ToolCall], seed: int
) -> None:
    assert calls_of(TaggedCalls(NAMES), cut(text, seed)) == (content, calls)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize(
    ("text", "content", "calls"),
    [
        ('{"name": "add", "parameters": {"x": 1}}', "", [ToolCall("add", '{"x": 1}')]),
        ('[{"name": "add", "arguments": {}}, {"name": "add"}]', "", [ToolCall("add", "{}")] * 2),
        ('\n {"name": "add"}; {"name": "add"}', "", [ToolCall("add", "{}")] * 2),
        (
            '[{"name": "add", "arguments": {"x": [1]}}, {"name": "add"}]',
            "",
            [ToolCall("add", '{"x": [1]}'), ToolCall("add", "{}")],
        ),
        (
            '{"name": "add", "parameters": {"x": 1}}; {"name": "add", "parameters": {"x": 2}}',
            "",
            [ToolCall("add", '{"x": 1}'), ToolCall("add", '{"x": 2}')],
        ),
        (
            '{"name": "add", "parameters": {"x": 1}} is what I call',
            "is what I call",
            [ToolCall("add", '{"x": 1}')],
        ),
        ('{"name": "add", "parameters": {"x": 1', "", [ToolCall("add", '{"x": 1')]),
        ('{"name": "other"}', '{"name": "other"}', []),
        ('{"name": "add", "arg', '{"name": "add", "arg', []),
        ("Sure: {}", "Sure: {}", []),
        ("", "", []),
    ],
)
def test_an_answer_that_is_json_from_its_start_is_calls(
    text: str, content: str, calls: list[ToolCall], seed: int
) -> None:
    assert calls_of(JsonCalls(NAMES), cut(text, seed)) == (content, calls)


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "<tool_call>" * 20_000])
def test_hostile_answers_stay_content(text: str) -> None:
    for parser in (TaggedCalls(NAMES), JsonCalls(NAMES)):
        content, calls = calls_of(parser, [text])
        assert (content.replace("\n", ""), calls) == (text, [])


@pytest.mark.parametrize("piece", ["<", "<tool_call", "<tool_call>", "</tool_call>", "{", " "])
def test_parsing_takes_linear_time(piece: str) -> None:
    def seconds(size: int) -> float:
        pieces = [piece] * (size // len(piece))
        begun = time.perf_counter()
        calls_of(TaggedCalls(NAMES), pieces)
        calls_of(JsonCalls(NAMES), pieces)
        split(pieces)
        split(pieces, inside=True)
        return time.perf_counter() - begun

    seconds(1000)
    # The best of three: another program's turn on the core is not ours to count.
    large, small = (min(seconds(size) for _ in range(3)) for size in (200_000, 20_000))
    assert large < 40 * small + 0.2


def test_a_tag_is_found_at_every_cut() -> None:
    for first in range(12):
        for second in range(first, 12):
            text = "ab<think>cd"
            finder = TagFinder("<think>")
            out, rest = "", None
            for piece in (text[:first], text[first:second], text[second:]):
                if rest is not None:
                    rest += piece
                    continue
                before, rest = finder.push(piece)
                out += before
            assert (out, rest) == ("ab", "cd")


@pytest.mark.parametrize(
    ("parser", "before"),
    [(TaggedCalls(NAMES), "<tool_call>\n"), (JsonCalls(NAMES), ""), (JsonCalls(NAMES), " [")],
)
def test_arguments_come_as_they_are_written(parser: TaggedCalls | JsonCalls, before: str) -> None:
    arguments = json.dumps({"city": "Köln {", "days": list(range(40))}, ensure_ascii=False)
    text = f'{before}{{"name": "weather", "arguments": {arguments}}}'
    name, came = None, ""
    for position, char in enumerate(text):
        content, parts = parser.push(char)
        assert not content
        for part in parts:
            name = part.name or name
            came += part.arguments
        written = text[: position + 1].partition('"arguments": ')[2]
        assert came == written[: len(arguments)], "held back"
    assert (name, came) == ("weather", arguments)
    assert parser.finish() == ("", [])


def test_arguments_that_are_no_json_object_are_read_as_none() -> None:
    assert read_arguments('{"city": "Köln"}') == {"city": "Köln"}
    for text in ('{"x": NaN}', '{"x', "[1]", "", "[" * 10_000):
        assert read_arguments(text) == {}
