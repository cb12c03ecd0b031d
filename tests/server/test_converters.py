"""/v1/responses and /v1/messages, judged by the official clients."""

import json
from collections.abc import Iterator
from typing import Any

import anthropic
import openai
import pytest

from tests.server.servers import MODEL, LocalServer

ADD_SCHEMA: dict[str, Any] = {
    "type": "object",
    "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 99}},
    "required": ["x"],
    "additionalProperties": False,
}
HELLO = "Hello, who are you?"


@pytest.fixture
def claude(server: LocalServer) -> Iterator[anthropic.Anthropic]:
    with anthropic.Anthropic(base_url=server.url, api_key="none", max_retries=0) as client:
        yield client


def chat_text(client: openai.OpenAI, messages: Any) -> str:
    answer = client.chat.completions.create(
        model=MODEL, messages=messages, max_tokens=10, temperature=0
    )
    assert answer.choices[0].message.content is not None
    return answer.choices[0].message.content


def test_a_response_is_the_chat_answer(client: openai.OpenAI) -> None:
    answer = client.responses.create(
        model=MODEL, input=HELLO, instructions="Be brief.", max_output_tokens=10, temperature=0
    )
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": HELLO},
    ]
    assert answer.output_text == chat_text(client, messages)
    assert answer.status == "incomplete"
    assert answer.incomplete_details is not None
    assert answer.incomplete_details.reason == "max_output_tokens"
    assert answer.usage is not None
    assert answer.usage.output_tokens == 10


def test_a_response_streams_the_events_of_the_api(client: openai.OpenAI) -> None:
    options: dict[str, Any] = {"max_output_tokens": 10, "temperature": 0}
    whole = client.responses.create(model=MODEL, input=HELLO, **options)
    with client.responses.stream(model=MODEL, input=HELLO, **options) as stream:
        events = list(stream)
    kinds = [event.type for event in events]
    assert kinds[:4] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.content_part.added",
    ]
    assert kinds[-4:] == [
        "response.output_text.done",
        "response.content_part.done",
        "response.output_item.done",
        "response.incomplete",
    ]
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole.output_text
    assert [event.sequence_number for event in events] == list(range(len(events)))


@pytest.mark.parametrize("stream", [False, True], ids=["whole", "streamed"])
def test_a_response_calls_a_function(client: openai.OpenAI, *, stream: bool) -> None:
    tool: Any = {"type": "function", "name": "add", "parameters": ADD_SCHEMA, "strict": True}
    options: dict[str, Any] = {
        "model": MODEL,
        "input": "Add 3",
        "tools": [tool],
        "tool_choice": {"type": "function", "name": "add"},
    }
    if stream:
        events = list(client.responses.create(stream=True, **options))
        answer = events[-1].response
        [done] = [e for e in events if e.type == "response.function_call_arguments.done"]
        assert done.arguments == answer.output[0].arguments
    else:
        answer = client.responses.create(**options)
    [call] = answer.output
    assert (call.type, call.name) == ("function_call", "add")
    assert 0 <= json.loads(call.arguments)["x"] <= 99
    again = client.responses.create(
        model=MODEL,
        input=[
            {"role": "user", "content": "Add 3"},
            {
                "type": "function_call",
                "call_id": call.call_id,
                "name": "add",
                "arguments": call.arguments,
            },
            {"type": "function_call_output", "call_id": call.call_id, "output": "4"},
        ],
        max_output_tokens=5,
    )
    assert again.output_text


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"background": True}, "background"),
        ({"temperature": 5}, "temperature"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"input": [{"type": "item_reference", "id": "x"}]}, "input"),
    ],
    ids=str,
)
def test_what_a_response_cannot_do_is_a_400(client: openai.OpenAI, fields: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.responses.create(**{"model": MODEL, "input": HELLO, **fields})
    assert caught.value.param == param


def test_a_message_is_the_chat_answer(claude: anthropic.Anthropic, client: openai.OpenAI) -> None:
    answer = claude.messages.create(
        model=MODEL,
        system="Be brief.",
        messages=[{"role": "user", "content": [{"type": "text", "text": HELLO}]}],
        max_tokens=10,
        extra_body={"temperature": 0},
    )
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": HELLO},
    ]
    [block] = answer.content
    assert block.type == "text"
    assert block.text == chat_text(client, messages)
    assert answer.stop_reason == "max_tokens"
    assert answer.usage.output_tokens == 10


def test_a_message_streams(claude: anthropic.Anthropic) -> None:
    options: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": HELLO}],
        "max_tokens": 10,
        "extra_body": {"temperature": 0},
    }
    whole = claude.messages.create(**options)
    with claude.messages.stream(**options) as stream:
        text = "".join(stream.text_stream)
        final = stream.get_final_message()
    assert text == whole.content[0].text
    assert final.stop_reason == "max_tokens"
    assert final.usage.output_tokens == 10


def test_a_stop_sequence_is_named(claude: anthropic.Anthropic) -> None:
    options: dict[str, Any] = {
        "model": MODEL,
        "messages": [{"role": "user", "content": HELLO}],
        "max_tokens": 10,
        "extra_body": {"temperature": 0},
    }
    stop = claude.messages.create(**options).content[0].text[6:9]
    answer = claude.messages.create(**options, stop_sequences=[stop])
    assert (answer.stop_reason, answer.stop_sequence) == ("stop_sequence", stop)


def test_a_message_uses_a_tool_and_reads_its_result(claude: anthropic.Anthropic) -> None:
    tools: Any = [{"name": "add", "input_schema": ADD_SCHEMA}]
    first: Any = {"role": "user", "content": "Add 3"}
    options: dict[str, Any] = {
        "model": MODEL,
        "max_tokens": 60,
        "tools": tools,
        "tool_choice": {"type": "any", "disable_parallel_tool_use": True},
    }
    answer = claude.messages.create(messages=[first], **options)
    [block] = answer.content
    assert answer.stop_reason == "tool_use"
    assert block.type == "tool_use"
    assert 0 <= block.input["x"] <= 99
    with claude.messages.stream(messages=[first], **options) as stream:
        [streamed] = stream.get_final_message().content
    assert streamed.type == "tool_use"
    assert 0 <= streamed.input["x"] <= 99
    result: Any = [{"type": "tool_result", "tool_use_id": block.id, "content": "4"}]
    turns: Any = [
        first,
        {"role": "assistant", "content": answer.content},
        {"role": "user", "content": result},
    ]
    last = claude.messages.create(model=MODEL, max_tokens=5, messages=turns, tools=tools)
    assert last.content


@pytest.mark.parametrize(
    ("fields", "kind"),
    [
        ({"extra_body": {"temperature": 5}}, anthropic.BadRequestError),
        ({"max_tokens": 0}, anthropic.BadRequestError),
        ({"messages": []}, anthropic.BadRequestError),
        ({"model": "claude"}, anthropic.NotFoundError),
        (
            {"messages": [{"role": "user", "content": [{"type": "image", "source": {}}]}]},
            anthropic.BadRequestError,
        ),
    ],
    ids=str,
)
def test_errors_are_those_the_anthropic_client_knows(
    claude: anthropic.Anthropic, fields: Any, kind: type[Exception]
) -> None:
    options = {"model": MODEL, "max_tokens": 5, "messages": [{"role": "user", "content": "x"}]}
    with pytest.raises(kind) as caught:
        claude.messages.create(**{**options, **fields})
    assert caught.value.body["type"] == "error"  # type: ignore[attr-defined]
