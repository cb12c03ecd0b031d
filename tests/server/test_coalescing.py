"""A loop that is behind writes several tokens at once, and what it says stays the same."""

import asyncio
import concurrent.futures
import json
import time
from typing import Any

import pytest

from lite_llama.completion import Completion
from lite_llama.engine.request import StepOutput, TokenLogprob
from lite_llama.engine.sampling_params import SamplingParams
from tests.server.servers import LocalServer

FIELDS: dict[str, dict[str, Any]] = {
    "plain": {"temperature": 0},
    "logprobs": {"temperature": 0, "logprobs": 2},
    "stop": {"temperature": 0, "stop": [" the", "zzz"]},
    "include_stop": {"temperature": 0, "stop": [" the"], "include_stop_str_in_output": True},
    "min_tokens": {"temperature": 0, "stop": [" the"], "min_tokens": 9},
    "n": {"temperature": 1, "seed": 5, "n": 3},
    "regex": {"temperature": 1, "seed": 3, "regex": "[a-z]{60}"},
}
PROMPT = "Once upon a time"
COUNTED = {"include_usage": True}


def events_of(server: LocalServer, **fields: Any) -> list[dict[str, Any]]:
    body = {"prompt": PROMPT, "max_tokens": 40, "stream": True, "stream_options": COUNTED}
    answer = server.post("/v1/completions", {**body, **fields})
    assert answer.status_code == 200, answer.text
    return [json.loads(part[6:]) for part in answer.text.split("\n\n") if part[:7] == "data: {"]


def joined(events: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The choices of a stream as those of a whole answer."""
    choices: dict[int, dict[str, Any]] = {}
    for event in events:
        for choice in event["choices"]:
            whole = choices.setdefault(
                choice["index"], {"text": "", "finish_reason": None, "logprobs": None}
            )
            whole["text"] += choice["text"]
            assert whole["finish_reason"] is None  # nothing comes behind the end
            whole["finish_reason"] = choice["finish_reason"]
            if choice["logprobs"] is not None:
                rows = whole["logprobs"] or {}
                whole["logprobs"] = {
                    name: rows.get(name, []) + row for name, row in choice["logprobs"].items()
                }
    return [choices[index] for index in sorted(choices)]


def block_the_loop(server: LocalServer, ending: concurrent.futures.Future[None]) -> Any:
    async def block() -> None:
        while not ending.done():
            time.sleep(0.15)  # the loop's own thread
            await asyncio.sleep(0.001)

    return asyncio.run_coroutine_threadsafe(block(), server.loop)


@pytest.mark.parametrize("name", FIELDS)
def test_a_stream_that_is_behind_says_what_a_whole_answer_says(
    server: LocalServer, name: str
) -> None:
    fields = FIELDS[name]
    body = {"prompt": PROMPT, "max_tokens": 40, **fields}
    whole = server.post("/v1/completions", body).json()
    quick = events_of(server, **fields)
    ending: concurrent.futures.Future[None] = concurrent.futures.Future()
    blocking = block_the_loop(server, ending)
    slow = events_of(server, **fields)
    ending.set_result(None)
    blocking.result(5)
    expected = [
        {key: choice[key] for key in ("text", "finish_reason", "logprobs")}
        for choice in whole["choices"]
    ]
    assert joined(slow) == expected
    assert joined(quick) == expected
    counts = [
        {key: usage[key] for key in ("prompt_tokens", "completion_tokens", "total_tokens")}
        for usage in (whole["usage"], quick[-1]["usage"], slow[-1]["usage"])
    ]
    assert counts[0] == counts[1] == counts[2]
    if name in ("plain", "n", "regex"):
        assert len(slow) < len(quick) / 2


def test_each_token_is_a_chunk_while_the_loop_keeps_up(server: LocalServer) -> None:
    events = events_of(server, temperature=0, ignore_eos=True, logprobs=0)
    tokens = [event["choices"][0]["logprobs"]["tokens"] for event in events if event["choices"]]
    assert sum(map(len, tokens)) == 40
    assert len(tokens) >= 36  # the machine may be busy with something else for a moment


def outputs(ids: list[int], finish: str | None) -> list[StepOutput]:
    rows = [[TokenLogprob(token, -1.0, 1)] for token in ids]
    ends = [None] * (len(ids) - 1) + [finish]
    return [
        StepOutput("0", token, row, None, end, None, 0)  # type: ignore[arg-type]
        for token, row, end in zip(ids, rows, ends, strict=True)
    ]


@pytest.mark.parametrize("size", [1, 2, 3, 7, 100])
def test_pieces_do_not_depend_on_how_many_tokens_come_at_a_time(
    server: LocalServer, size: int
) -> None:
    """Stop strings across tokens, in the middle of a batch, and characters of several tokens."""
    tokenizer = server.llm.tokenizer
    ids = tokenizer.encode("ünder 🙂 the bridge STOP and on")
    for stop in (None, ["STOP"], ["the b"], ["nowhere"]):
        params = SamplingParams(stop=stop, logprobs=0)
        steps = outputs(ids, "length")
        parts = []
        completion = Completion.begin("0", 0, params, 1, tokenizer)
        while steps and completion.finish_reason is None:
            parts.append(completion.push(steps[:size]))
            del steps[:size]
        alone = Completion.begin("0", 0, params, 1, tokenizer)
        for step in outputs(ids, "length"):
            alone.push([step])
            if alone.finish_reason is not None:
                break
        assert "".join(part.text for part in parts) == alone.text == completion.text
        assert [token for part in parts for token in part.token_ids] == alone.token_ids
        assert [row for part in parts for row in part.logprobs] == alone.logprobs
        assert (completion.finish_reason, completion.stop_reason) == (
            alone.finish_reason,
            alone.stop_reason,
        )
