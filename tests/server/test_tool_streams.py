"""Arguments of tool calls come as the model writes them, and make the call of the whole answer."""

import json
from typing import Any

import anthropic
import openai
import pytest

from lite_llama.text.stream import IncrementalDetokenizer
from tests.server.servers import MODEL, LocalServer
from tests.server.test_chat import ADD, WEATHER, check_call, create

Call = tuple[str, str]
ARGUMENTS = json.dumps({"city": "Köln {", "unit": "kelvin", "days": list(range(20))})
CALL = f'{{"name": "get_weather", "arguments": {ARGUMENTS}}}'


def streamed(stream: Any) -> tuple[list[Call], int]:
    """The calls of a chat's stream, and how many pieces their arguments came in."""
    calls: list[Call] = []
    num_pieces = 0
    for chunk in stream:
        for part in chunk.choices[0].delta.tool_calls or ():
            if part.id:
                assert part.index == len(calls)
                calls.append((part.function.name, ""))
            name, arguments = calls[part.index]
            calls[part.index] = (name, arguments + part.function.arguments)
            num_pieces += bool(part.function.arguments)
    return calls, num_pieces


def whole(answer: Any) -> list[Call]:
    called = answer.choices[0].message.tool_calls
    return [(call.function.name, call.function.arguments) for call in called]


@pytest.mark.parametrize("seed", range(4))
def test_constrained_arguments_stream_and_make_the_whole_call(
    client: openai.OpenAI, seed: int
) -> None:
    options = {"tools": [WEATHER, ADD], "tool_choice": "required", "seed": seed, "max_tokens": 300}
    calls, num_pieces = streamed(create(client, temperature=1.5, stream=True, **options))
    assert calls == whole(create(client, temperature=1.5, **options))
    assert num_pieces >= 3 * len(calls)
    for name, arguments in calls:
        check_call(name, arguments)


@pytest.fixture
def says(server: LocalServer, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes the model say a text, three characters a token; returns the number of tokens."""

    def say(text: str) -> int:
        def push(detokenizer: Any, ids: list[int]) -> str:
            place = detokenizer.__dict__.setdefault("place", 0)
            detokenizer.place += 3 * len(ids)
            return text[place : detokenizer.place]

        monkeypatch.setattr(IncrementalDetokenizer, "push", push)
        monkeypatch.setattr(server.llm.engine, "eos_token_ids", frozenset())
        return -(-len(text) // 3)

    return say


@pytest.fixture
def called(server: LocalServer) -> str:
    """A text with a call, as the model's template wants it."""
    has_tags = "<tool_call>" in server.service.template
    return f"<tool_call>\n{CALL}\n</tool_call>" if has_tags else CALL


def test_free_arguments_stream_and_make_the_whole_call(
    client: openai.OpenAI, says: Any, called: str
) -> None:
    options = {"tools": [WEATHER], "max_tokens": says(called)}
    calls, num_pieces = streamed(create(client, stream=True, **options))
    assert calls == [("get_weather", ARGUMENTS)]
    assert whole(create(client, **options)) == calls
    assert num_pieces >= len(ARGUMENTS) // 3


def test_a_call_that_is_cut_off_is_the_same_either_way(
    client: openai.OpenAI, says: Any, called: str
) -> None:
    options = {"tools": [WEATHER], "max_tokens": says(called) // 2}
    calls, _ = streamed(create(client, stream=True, **options))
    answer = create(client, **options)
    assert whole(answer) == calls
    assert ARGUMENTS.startswith(calls[0][1])
    assert answer.choices[0].finish_reason == "length"


def test_a_responses_arguments_stream(client: openai.OpenAI, says: Any, called: str) -> None:
    tool: Any = {"type": "function", **WEATHER["function"]}
    options: dict[str, Any] = {"model": MODEL, "input": "Weather?", "tools": [tool]}
    options["max_output_tokens"] = says(called)
    events = list(client.responses.create(stream=True, **options))
    pieces = [e.delta for e in events if e.type == "response.function_call_arguments.delta"]
    assert "".join(pieces) == ARGUMENTS
    assert len(pieces) >= len(ARGUMENTS) // 3
    [done] = [e for e in events if e.type == "response.function_call_arguments.done"]
    assert (done.name, done.arguments) == ("get_weather", ARGUMENTS)
    kinds = [event.type for event in events]
    assert kinds.index("response.output_item.done") > kinds.index(done.type)
    [call] = client.responses.create(**options).output
    assert (call.type, call.name, call.arguments) == ("function_call", "get_weather", ARGUMENTS)


def test_a_messages_input_streams(server: LocalServer, says: Any, called: str) -> None:
    function = WEATHER["function"]
    tool: Any = {"name": function["name"], "input_schema": function["parameters"]}
    options: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": "Weather?"}],
        "tools": [tool],
        "max_tokens": says(called),
    }
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as claude:
        with claude.messages.stream(**options) as stream:
            pieces = [event.partial_json for event in stream if event.type == "input_json"]
            [block] = stream.get_final_message().content
        assert "".join(pieces) == ARGUMENTS
        assert len(pieces) >= len(ARGUMENTS) // 3
        assert block.type == "tool_use"
        assert block.input == json.loads(ARGUMENTS)
        [answered] = claude.messages.create(**options).content
        assert answered.type == "tool_use"
        assert answered.input == block.input
