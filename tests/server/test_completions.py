"""Plain completions, judged by the official client."""

from typing import Any

import openai
import pytest

from tests.server.servers import MODEL, LocalServer

PROMPT = "The capital of France is"


def create(client: openai.OpenAI, **fields: Any) -> Any:
    options = {"model": MODEL, "prompt": PROMPT, "max_tokens": 6, "temperature": 0, **fields}
    return client.completions.create(**options)


def test_a_completion_goes_on_with_the_text(client: openai.OpenAI) -> None:
    answer = create(client)
    assert answer.object == "text_completion"
    assert answer.choices[0].text.startswith(" Paris")
    assert answer.choices[0].finish_reason == "length"
    assert answer.usage.prompt_tokens == 5
    assert answer.usage.completion_tokens == 6


def test_max_tokens_is_16_unless_given(client: openai.OpenAI) -> None:
    answer = create(client, max_tokens=None, prompt="One, two, three, four,")
    assert answer.usage.completion_tokens == 16


def test_token_ids_are_a_prompt(client: openai.OpenAI, server: LocalServer) -> None:
    ids = server.llm.tokenizer.encode(PROMPT)
    assert create(client, prompt=ids).choices[0].text == create(client).choices[0].text


def test_prompts_of_a_batch_keep_their_order(client: openai.OpenAI, server: LocalServer) -> None:
    prompts = [PROMPT, "2 + 2 =", "The sun is"]
    alone = [create(client, prompt=prompt).choices[0].text for prompt in prompts]
    answer = create(client, prompt=prompts)
    assert [choice.text for choice in answer.choices] == alone
    assert [choice.index for choice in answer.choices] == [0, 1, 2]
    ids = [server.llm.tokenizer.encode(prompt) for prompt in prompts]
    assert [choice.text for choice in create(client, prompt=ids).choices] == alone


def test_a_batch_streams_each_choice_under_its_index(client: openai.OpenAI) -> None:
    prompts = [PROMPT, "The sun is"]
    options: dict[str, Any] = {"prompt": prompts, "n": 2, "temperature": 1, "seed": 5}
    whole = create(client, **options)
    texts = [""] * 4
    ends: list[str | None] = [None] * 4
    for chunk in create(client, stream=True, **options):
        for choice in chunk.choices:
            texts[choice.index] += choice.text
            ends[choice.index] = choice.finish_reason
    assert texts == [choice.text for choice in whole.choices]
    assert ends == [choice.finish_reason for choice in whole.choices]


def test_echo_with_logprobs_scores_the_prompt(client: openai.OpenAI, server: LocalServer) -> None:
    answer = create(client, echo=True, logprobs=2, max_tokens=3)
    described = answer.choices[0].logprobs
    assert answer.choices[0].text.startswith(PROMPT)
    assert "".join(described.tokens) == answer.choices[0].text
    assert described.token_logprobs[0] is None
    assert len(described.tokens) == len(described.top_logprobs) == 8
    starts = [answer.choices[0].text.index(" Paris"), described.text_offset[5]]
    assert starts[0] == starts[1]
    logits = server.llm.logits(server.llm.tokenizer.encode(PROMPT)).log_softmax(-1)
    second = server.llm.tokenizer.encode(PROMPT)[1]
    assert described.token_logprobs[1] == pytest.approx(float(logits[0, second]), abs=0.05)


def test_streamed_logprobs_have_the_offsets_of_the_whole(client: openai.OpenAI) -> None:
    whole = create(client, logprobs=1, echo=True).choices[0].logprobs
    offsets, tokens = [], []
    for chunk in create(client, logprobs=1, echo=True, stream=True):
        described = chunk.choices[0].logprobs
        offsets += described.text_offset if described else []
        tokens += described.tokens if described else []
    assert tokens == whole.tokens
    assert offsets == whole.text_offset


def test_a_stop_string_ends_a_completion(client: openai.OpenAI) -> None:
    answer = create(client, stop=["Paris"])
    assert answer.choices[0].text == " "
    assert answer.choices[0].finish_reason == "stop"


def test_usage_is_the_last_chunk_of_a_stream(client: openai.OpenAI) -> None:
    chunks = list(create(client, stream=True, stream_options={"include_usage": True}))
    assert chunks[-1].choices == []
    assert chunks[-1].usage.completion_tokens == 6


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": ""}, "prompt"),
        ({"prompt": []}, "prompt"),
        ({"prompt": None}, "prompt"),
        ({"prompt": 5}, "prompt"),
        ({"prompt": [1, "a"]}, "prompt"),
        ({"prompt": [True]}, "prompt"),
        ({"prompt": [-1]}, "prompt"),
        ({"prompt": [49152]}, "prompt"),
        ({"prompt": [2**31]}, "prompt"),
        ({"prompt": [2**63]}, "prompt"),
        ({"prompt": ["a"] * 65}, "prompt"),
        ({"prompt": [[1], []]}, "prompt"),
        ({"prompt": "a " * 3000}, "prompt"),
        ({"prompt": "a" * 9000}, "prompt"),
        ({"logprobs": 21}, "logprobs"),
        ({"logprobs": -1}, "logprobs"),
        ({"best_of": 2}, "best_of"),
        ({"suffix": "x"}, "suffix"),
        ({"max_tokens": 2000}, "max_tokens"),
    ],
    ids=str,
)
def test_a_bad_field_is_a_400_that_names_it(client: openai.OpenAI, fields: Any, param: str) -> None:
    with pytest.raises(openai.BadRequestError) as caught:
        create(client, **fields)
    assert caught.value.param == param
