"""The chat endpoint, judged by the official client."""

import asyncio
import json
import random
from typing import Any

import httpx
import openai
import pytest
from pydantic import BaseModel

from tests.server.servers import MODEL, LocalServer

HELLO: Any = [{"role": "user", "content": "Hello, who are you?"}]
WEATHER: Any = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather in a city.",
        "parameters": {
            "type": "object",
            "properties": {
                "city": {"type": "string", "maxLength": 12},
                "unit": {"enum": ["celsius", "kelvin"]},
            },
            "required": ["city", "unit"],
            "additionalProperties": False,
        },
    },
}
ADD: Any = {
    "type": "function",
    "function": {
        "name": "add",
        "parameters": {
            "type": "object",
            "properties": {"x": {"type": "integer", "minimum": 0, "maximum": 99}},
            "required": ["x"],
            "additionalProperties": False,
        },
    },
}


OURS = [
    "top_k",
    "min_p",
    "repetition_penalty",
    "min_tokens",
    "ignore_eos",
    "regex",
    "stop_token_ids",
    "prompt_logprobs",
    "cache_salt",
    "chat_template_kwargs",
]


def create(client: openai.OpenAI, **fields: Any) -> Any:
    options = {"model": MODEL, "messages": HELLO, "max_tokens": 8, "temperature": 0, **fields}
    extra = {name: options.pop(name) for name in OURS if name in options}
    return client.chat.completions.create(**options, extra_body=extra)


def text_of(answer: Any) -> str:
    text = answer.choices[0].message.content
    assert isinstance(text, str)
    return text


def test_an_answer_has_text_reason_and_usage(client: openai.OpenAI) -> None:
    answer = create(client)
    assert answer.object == "chat.completion"
    assert answer.model == MODEL
    assert answer.id.startswith("chatcmpl-")
    assert len(text_of(answer)) > 5
    assert answer.choices[0].finish_reason == "length"
    assert answer.choices[0].message.role == "assistant"
    assert answer.usage.completion_tokens == 8
    assert answer.usage.total_tokens == 8 + answer.usage.prompt_tokens


def test_greedy_answers_are_those_of_the_python_api(client: openai.OpenAI) -> None:
    from lite_llama import LLM, SamplingParams

    expected = text_of(create(client, max_tokens=12))
    params = SamplingParams(temperature=0, max_tokens=12)
    # Of its own: the server's engine belongs to the server's loop.
    with LLM(device="cpu", max_model_len=1024, num_blocks=256) as llm:
        assert llm.chat(HELLO, params)[0].outputs[0].text == expected


def test_a_repeated_prompt_reports_cached_tokens(client: openai.OpenAI) -> None:
    create(client, cache_salt="one")
    again = create(client, cache_salt="one")
    other = create(client, cache_salt="two")
    assert again.usage.prompt_tokens_details.cached_tokens >= 16
    assert other.usage.prompt_tokens_details.cached_tokens == 0


def test_a_stream_has_role_first_one_reason_usage_and_the_text(client: openai.OpenAI) -> None:
    chunks = list(create(client, stream=True, stream_options={"include_usage": True}))
    assert chunks[0].choices[0].delta.role == "assistant"
    assert chunks[0].choices[0].delta.content == ""
    ends = [choice.finish_reason for chunk in chunks for choice in chunk.choices]
    assert [end for end in ends if end] == ["length"]
    assert ends[-1] == "length"
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 8
    assert len({chunk.id for chunk in chunks}) == 1
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == text_of(create(client))


def test_no_usage_chunk_comes_unless_asked_for(client: openai.OpenAI) -> None:
    assert all(chunk.choices for chunk in create(client, stream=True))


def test_the_stream_ends_with_done(server: LocalServer) -> None:
    answer = server.chat("Hi", stream=True, max_tokens=2)
    assert answer.headers["content-type"].startswith("text/event-stream")
    assert answer.text.endswith("data: [DONE]\n\n")
    assert answer.text.count("[DONE]") == 1


def test_several_choices_differ_and_repeat_with_their_seed(client: openai.OpenAI) -> None:
    first, again = (create(client, n=3, seed=7, temperature=1.0) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert [choice.index for choice in first.choices] == [0, 1, 2]
    assert len(set(texts)) == 3
    assert texts == [choice.message.content for choice in again.choices]
    assert 3 < first.usage.completion_tokens <= 24


def test_streamed_choices_are_those_of_the_whole_answer(client: openai.OpenAI) -> None:
    whole = create(client, n=3, seed=7, temperature=1.0)
    texts = ["", "", ""]
    for chunk in create(client, n=3, seed=7, temperature=1.0, stream=True):
        for choice in chunk.choices:
            texts[choice.index] += choice.delta.content or ""
    assert texts == [choice.message.content for choice in whole.choices]


def test_logprobs_describe_each_token_and_its_alternatives(client: openai.OpenAI) -> None:
    answer = create(client, logprobs=True, top_logprobs=3)
    content = answer.choices[0].logprobs.content
    assert len(content) == 8
    assert "".join(entry.token for entry in content) == text_of(answer)
    for entry in content:
        assert len(entry.top_logprobs) == 3
        assert entry.logprob == entry.top_logprobs[0].logprob <= 0  # greedy
        assert bytes(entry.bytes).decode() == entry.token


def test_streamed_logprobs_are_those_of_the_whole_answer(client: openai.OpenAI) -> None:
    whole = create(client, logprobs=True).choices[0].logprobs.content
    streamed = [
        entry
        for chunk in create(client, logprobs=True, stream=True)
        for choice in chunk.choices
        if choice.logprobs
        for entry in choice.logprobs.content
    ]
    assert [entry.token for entry in streamed] == [entry.token for entry in whole]


def test_logprobs_leave_out_the_end_token(client: openai.OpenAI) -> None:
    answer = create(
        client, logprobs=True, regex="Yes|No", max_tokens=5, messages=HELLO, temperature=0
    )
    content = answer.choices[0].logprobs.content
    assert answer.choices[0].finish_reason == "stop"
    assert "".join(entry.token for entry in content) == text_of(answer)


def test_prompt_logprobs_cover_the_prompt(client: openai.OpenAI) -> None:
    answer = create(client, prompt_logprobs=1)
    rows = answer.prompt_logprobs
    assert len(rows) == answer.usage.prompt_tokens
    assert rows[0] is None
    assert all(entry["logprob"] <= 0 for row in rows[1:] for entry in row.values())


def test_a_stop_string_ends_the_text_before_it(client: openai.OpenAI) -> None:
    whole = text_of(create(client, max_tokens=16))
    stop = whole[10:13]
    cut = create(client, max_tokens=16, stop=stop)
    assert text_of(cut) == whole[: whole.index(stop)]
    assert cut.choices[0].finish_reason == "stop"
    assert text_of(create(client, max_tokens=16, stop=["@@@", stop])) == text_of(cut)


def test_a_stop_token_ends_the_text(client: openai.OpenAI, server: LocalServer) -> None:
    whole = text_of(create(client))
    token = server.llm.tokenizer.encode(whole)[2]
    cut = create(client, stop_token_ids=[token])
    assert cut.choices[0].finish_reason == "stop"
    assert whole.startswith(text_of(cut))
    assert len(text_of(cut)) < len(whole)


def check_streams(client: openai.OpenAI, num_cases: int) -> None:
    """A9: greedy or not, a stream says what the whole text does, without its stop strings."""
    draw = random.Random(0)
    words = ["the", "cat", "é", "日本", "123", "\n", "sun", "why", "🙂", "list"]
    base = text_of(create(client, max_tokens=24, messages=HELLO))
    for case in range(num_cases):
        messages = [{"role": "user", "content": " ".join(draw.choices(words, k=4))}]
        stops = [base[i : i + draw.randint(1, 3)] for i in draw.sample(range(20), 2)]
        options = {"messages": messages, "stop": stops, "seed": case, "temperature": 1.3}
        # Salts of their own: with a cached prefix the sums are in another order.
        whole = text_of(create(client, max_tokens=12, cache_salt=f"a{case}", **options))
        stream = create(client, max_tokens=12, stream=True, cache_salt=f"b{case}", **options)
        pieces = [chunk.choices[0].delta.content or "" for chunk in stream]
        assert "".join(pieces) == whole
        assert not any(stop in whole for stop in stops)


def test_streams_never_leak_a_stop_string_and_equal_the_whole_text(client: openai.OpenAI) -> None:
    check_streams(client, 25)


def test_a_character_of_several_tokens_is_never_split(client: openai.OpenAI) -> None:
    pieces = [
        chunk.choices[0].delta.content or ""
        for chunk in create(
            client, regex="[🙂🙃日本語]{6}", stream=True, max_tokens=60, temperature=1
        )
    ]
    assert len("".join(pieces)) == 6
    assert "\ufffd" not in "".join(pieces)


@pytest.mark.parametrize(
    "fields",
    [
        {"top_p": 0.5},
        {"top_k": 3},
        {"min_p": 0.2},
        {"presence_penalty": 1.5},
        {"frequency_penalty": 1.5},
        {"repetition_penalty": 1.5},
        {"logit_bias": {"260": 90.0}},
    ],
    ids=lambda fields: next(iter(fields)),
)
def test_each_sampling_field_changes_the_draw(client: openai.OpenAI, fields: Any) -> None:
    common = {"temperature": 1.5, "seed": 3, "max_tokens": 10}
    assert text_of(create(client, **common, **fields)) != text_of(create(client, **common))


def test_logit_bias_forces_a_token(client: openai.OpenAI, server: LocalServer) -> None:
    token = server.llm.tokenizer.encode(" sun")[0]
    answer = create(client, logit_bias={str(token): 100}, max_tokens=3)
    assert text_of(answer) == " sun sun sun"


def test_min_tokens_and_ignore_eos_go_past_the_end(client: openai.OpenAI) -> None:
    messages = [{"role": "user", "content": "Say only: ok"}]
    eos = {"2": 100}  # <|im_end|>, made the likeliest token
    assert create(client, messages=messages, logit_bias=eos).usage.completion_tokens == 1
    longer = create(client, messages=messages, logit_bias=eos, min_tokens=4)
    assert longer.usage.completion_tokens == 5
    assert create(client, logit_bias=eos, ignore_eos=True).usage.completion_tokens == 8


def test_null_means_not_given(server: LocalServer) -> None:
    names = [
        "n",
        "stop",
        "seed",
        "max_completion_tokens",
        "top_p",
        "logit_bias",
        "logprobs",
        "tools",
        "tool_choice",
        "response_format",
        "stream_options",
        "user",
        "regex",
        "best_of",
        "suffix",
        "timeout",
        "chat_template_kwargs",
        "parallel_tool_calls",
        "stream",
        "model",
    ]
    plain = server.chat("Hi", max_tokens=4, temperature=0).json()
    nulls = server.chat("Hi", max_tokens=4, temperature=0, **dict.fromkeys(names)).json()
    assert nulls["choices"] == plain["choices"]


def test_text_parts_are_one_text(client: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": "Hello, "}, {"type": "text", "text": "who are you?"}]
    assert text_of(create(client, messages=[{"role": "user", "content": parts}])) == text_of(
        create(client)
    )


def test_a_developer_message_is_a_system_message(client: openai.OpenAI) -> None:
    one, two = (
        create(client, messages=[{"role": role, "content": "Be a pirate."}, *HELLO])
        for role in ("developer", "system")
    )
    assert text_of(one) == text_of(two)


def test_a_whole_tool_conversation_is_accepted(client: openai.OpenAI) -> None:
    call = {"id": "c1", "type": "function", "function": {"name": "add", "arguments": '{"x":1}'}}
    messages = [
        *HELLO,
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "2"},
        {"role": "user", "content": "Thanks"},
    ]
    assert text_of(create(client, messages=messages, tools=[ADD]))


# --- tools


@pytest.mark.parametrize("seed", range(5))
def test_a_required_tool_is_called_with_valid_arguments(client: openai.OpenAI, seed: int) -> None:
    answer = create(
        client,
        tools=[WEATHER, ADD],
        tool_choice="required",
        temperature=1.5,
        seed=seed,
        max_tokens=150,
        parallel_tool_calls=False,
    )
    [choice] = answer.choices
    assert choice.finish_reason == "tool_calls"
    [call] = choice.message.tool_calls
    assert call.id.startswith("call_")
    check_call(call.function.name, call.function.arguments)


def check_call(name: str, arguments: str) -> None:
    """A10: constrained arguments satisfy their function's schema."""
    given = json.loads(arguments)
    if name == "add":
        assert list(given) == ["x"]
        assert 0 <= given["x"] <= 99
    else:
        assert name == "get_weather"
        assert len(given["city"]) <= 12
        assert given["unit"] in ("celsius", "kelvin")


def test_a_named_tool_is_the_one_called(client: openai.OpenAI) -> None:
    choice: Any = {"type": "function", "function": {"name": "add"}}
    answer = create(client, tools=[WEATHER, ADD], tool_choice=choice, max_tokens=40)
    [call] = answer.choices[0].message.tool_calls
    assert call.function.name == "add"
    assert list(json.loads(call.function.arguments)) == ["x"]


def test_parallel_calls_have_ids_of_their_own(client: openai.OpenAI) -> None:
    answer = create(
        client, tools=[ADD], tool_choice="required", max_tokens=300, temperature=1.5, seed=1
    )
    calls = answer.choices[0].message.tool_calls
    assert len({call.id for call in calls}) == len(calls)


def rebuilt_calls(stream: Any) -> list[dict[str, str]]:
    """The calls of a stream, put together from its deltas."""
    rebuilt: dict[int, dict[str, str]] = {}
    reasons = []
    for chunk in stream:
        [choice] = chunk.choices
        reasons.append(choice.finish_reason)
        for part in choice.delta.tool_calls or ():
            if part.id:
                assert part.type == "function"
                rebuilt[part.index] = {"name": part.function.name, "arguments": ""}
            rebuilt[part.index]["arguments"] += part.function.arguments or ""
    assert reasons[-1] == "tool_calls"
    assert sorted(rebuilt) == list(range(len(rebuilt)))
    return list(rebuilt.values())


def test_streamed_calls_rebuild_to_valid_json(client: openai.OpenAI) -> None:
    calls = rebuilt_calls(
        create(client, tools=[ADD], tool_choice="required", max_tokens=300, seed=1, stream=True)
    )
    assert calls
    for call in calls:
        check_call(**call)


def test_tool_choice_none_gives_text(client: openai.OpenAI) -> None:
    answer = create(client, tools=[ADD], tool_choice="none")
    assert answer.choices[0].message.tool_calls is None
    assert text_of(answer) == text_of(create(client))


def test_tool_choice_auto_leaves_the_model_free(client: openai.OpenAI) -> None:
    answer = create(client, tools=[ADD], tool_choice="auto")
    assert answer.choices[0].message.content or answer.choices[0].message.tool_calls


# --- structured output


class Person(BaseModel):
    name: str
    age: int


def test_parse_returns_the_model_class(client: openai.OpenAI) -> None:
    answer = client.chat.completions.parse(
        model=MODEL,
        messages=[{"role": "user", "content": "Alice is 30."}],
        response_format=Person,
        max_tokens=200,
        temperature=0,
    )
    assert isinstance(answer.choices[0].message.parsed, Person)


def test_json_object_is_a_json_object(client: openai.OpenAI) -> None:
    answer = create(client, response_format={"type": "json_object"}, max_tokens=400, seed=2)
    assert answer.choices[0].finish_reason == "length" or isinstance(
        json.loads(text_of(answer)), dict
    )
    assert text_of(answer).startswith("{")


def test_a_regex_is_matched(client: openai.OpenAI) -> None:
    answer = create(client, regex=r"[0-9]{3}-[a-f]{2}", temperature=1.5, max_tokens=20)
    text = text_of(answer)
    assert len(text) == 6
    assert text[:3].isdecimal()
    assert set(text[4:]) <= set("abcdef")


# --- errors, as the client names them


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"temperature": 3}, "temperature"),
        ({"top_p": 0}, "top_p"),
        ({"n": 17, "temperature": 1}, "n"),
        ({"n": 2}, "n"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"max_tokens": 5000}, "max_tokens"),
        ({"max_tokens": None, "max_completion_tokens": 0}, "max_completion_tokens"),
        ({"logprobs": True, "top_logprobs": 21}, "top_logprobs"),
        ({"top_logprobs": 2}, "top_logprobs"),
        ({"stop": [""]}, "stop"),
        ({"stop": ["x"] * 17}, "stop"),
        ({"logit_bias": {"x": 1}}, "logit_bias"),
        ({"logit_bias": {"-1": 1}}, "logit_bias"),
        ({"logit_bias": {"999999": 1}}, "logit_bias"),
        ({"logit_bias": {"1": 101}}, "logit_bias"),
        ({"messages": []}, "messages"),
        ({"messages": [{"role": "robot", "content": "x"}]}, "messages"),
        ({"messages": [{"role": "user"}]}, "messages"),
        ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "messages"),
        ({"messages": [{"role": "user", "content": "word " * 3000}]}, "messages"),
        ({"tools": [ADD] * 129}, "tools"),
        ({"tools": [ADD], "tool_choice": "maybe"}, "tool_choice"),
        ({"tool_choice": "required"}, "tool_choice"),
        (
            {"tools": [ADD], "tool_choice": {"type": "function", "function": {"name": "no"}}},
            "tool_choice",
        ),
        ({"response_format": {"type": "xml"}}, "response_format"),
        ({"response_format": {"type": "json_schema"}}, "response_format"),
        ({"regex": "("}, "regex"),
        ({"regex": "a", "min_tokens": 3}, "min_tokens"),
        ({"chat_template_kwargs": {"messages": []}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"tokenize": True}}, "chat_template_kwargs"),
        ({"chat_template_kwargs": {"x": "y" * 20000}}, "chat_template_kwargs"),
        ({"stream_options": {"include_usage": True}}, "stream_options"),
        ({"user": "x" * 513}, "user"),
        ({"metadata": {str(i): "x" for i in range(17)}}, "metadata"),
    ],
    ids=str,
)
def test_a_bad_field_is_a_400_that_names_it(client: openai.OpenAI, fields: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        create(client, **fields)
    assert caught.value.param == param
    assert caught.value.type == "invalid_request_error"


@pytest.mark.parametrize("name", ["best_of", "suffix", "chat_template", "functions", "audio"])
def test_what_is_not_implemented_is_refused_by_name(client: openai.OpenAI, name: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        client.chat.completions.create(model=MODEL, messages=HELLO, extra_body={name: "x"})
    assert caught.value.param == name


def test_an_unknown_model_is_not_found(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError) as caught:
        create(client, model="gpt-4")
    assert caught.value.code == "model_not_found"


def test_unknown_fields_are_named_in_a_header(server: LocalServer) -> None:
    answer = server.chat("Hi", max_tokens=1, banana=1, store=True)
    assert answer.headers["x-ignored-fields"] == "banana, store"
    assert "x-ignored-fields" not in server.chat("Hi", max_tokens=1).headers


def test_the_asynchronous_client_runs_requests_side_by_side(server: LocalServer) -> None:
    async def ask_all() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="x") as client:
            answers = await asyncio.gather(
                *(
                    client.chat.completions.create(
                        model=MODEL, messages=HELLO, max_tokens=8, temperature=0
                    )
                    for _ in range(8)
                )
            )
            stream = await client.chat.completions.create(
                model=MODEL, messages=HELLO, max_tokens=8, temperature=0, stream=True
            )
            streamed = "".join([chunk.choices[0].delta.content or "" async for chunk in stream])
        return [*(text_of(answer) for answer in answers), streamed]

    assert len(set(asyncio.run(ask_all()))) == 1


def test_closing_a_stream_frees_its_blocks_at_once(client: openai.OpenAI) -> None:
    stream = create(client, stream=True, max_tokens=900, ignore_eos=True)
    next(iter(stream))
    stream.close()
    # The server fixture waits until no block is in use.


def test_a_client_timeout_is_its_exception(client: openai.OpenAI) -> None:
    with pytest.raises(openai.APITimeoutError):
        create(client.with_options(timeout=0.3), max_tokens=900, ignore_eos=True)


def test_a_deadline_is_a_504_in_time(server: LocalServer) -> None:
    answer = server.chat("Hi", max_tokens=900, ignore_eos=True, timeout=0.5)
    assert answer.status_code == 504
    assert answer.json()["error"]["type"] == "timeout_error"
    assert 0.4 < answer.elapsed.total_seconds() < 0.6


def test_a_deadline_ends_a_stream_with_an_error_event(server: LocalServer) -> None:
    answer = server.chat("Hi", max_tokens=900, ignore_eos=True, timeout=0.5, stream=True)
    assert answer.status_code == 200
    last = answer.text.strip().split("\n\n")[-1].removeprefix("data: ")
    assert json.loads(last)["error"]["type"] == "timeout_error"


def test_models_and_tokenizer_endpoints(client: openai.OpenAI, server: LocalServer) -> None:
    assert [model.id for model in client.models.list()] == [MODEL]
    tokens = server.post("/tokenize", {"prompt": "Hello wörld"}).json()
    assert tokens["count"] == len(tokens["tokens"]) == 4
    back = server.post("/detokenize", {"tokens": tokens["tokens"]}).json()
    assert back == {"prompt": "Hello wörld"}
    chat = server.post("/tokenize", {"messages": HELLO}).json()
    assert chat["tokens"] == server.llm.render_chat(HELLO)
    for path, body, param in (
        ("/tokenize", {}, "prompt"),
        ("/detokenize", {"tokens": [-1]}, "tokens"),
        ("/detokenize", {"tokens": [10**9]}, "tokens"),
        ("/detokenize", {"tokens": "x"}, "tokens"),
        ("/detokenize", {}, "tokens"),
    ):
        answer = server.post(path, body)
        assert (answer.status_code, answer.json()["error"]["param"]) == (400, param)


def test_a_request_id_is_returned(server: LocalServer) -> None:
    for given, kept in (("abc-123", True), ("a b", False), ("x" * 129, False), (None, False)):
        headers = {} if given is None else {"x-request-id": given}
        answer = httpx.get(f"{server.url}/v1/models", headers=headers)
        assert (answer.headers["x-request-id"] == given) == kept
