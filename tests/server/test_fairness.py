"""Requests that come together share the event loop with the streams that run."""

import asyncio
from typing import Any

import pytest

from lite_llama.engine.sampling_params import SamplingParams
from lite_llama.server import async_engine
from lite_llama.server.async_engine import _Rounds, _Turns
from lite_llama.server.chat import ChatWriter
from lite_llama.server.completions import CompletionWriter
from lite_llama.server.http import data_event
from lite_llama.server.protocol import ChatRequest, CompletionRequest, sampling_params
from tests.server.servers import LocalServer


def test_few_requests_begin_in_a_turn_and_in_order() -> None:
    async def hold() -> list[tuple[int, int]]:
        loop = asyncio.get_running_loop()
        turns = _Turns(loop)
        turn = 0
        begun = []

        async def begin(number: int) -> None:
            await turns.take()
            begun.append((turn, number))

        tasks = [asyncio.create_task(begin(number)) for number in range(11)]
        await asyncio.sleep(0)
        tasks[5].cancel()  # its client has left; nobody waits for it
        while not all(task.done() for task in tasks):
            turn += 1
            await asyncio.sleep(0)
        return begun

    begun = asyncio.run(hold())
    assert [number for _, number in begun] == [0, 1, 2, 3, 4, 6, 7, 8, 9, 10]
    for turn in {turn for turn, _ in begun}:
        assert [each for each, _ in begun].count(turn) <= async_engine._BEGINNERS


class Stream:
    """Notes the turn in which it is told."""

    def __init__(self, told: list[Any], name: str) -> None:
        self.told, self.name = told, name

    def wake(self) -> None:
        self.told.append(self.name)


def test_first_and_last_tokens_go_first_and_all_go_in_groups() -> None:
    async def hold() -> list[int]:
        told: list[str] = []
        rounds = _Rounds(asyncio.get_running_loop())
        for _ in range(100):
            rounds.add(Stream(told, "token"))  # type: ignore[arg-type]
        for _ in range(20):
            rounds.add_urgent(Stream(told, "first"))  # type: ignore[arg-type]
        rounds.begin()
        sizes = [len(told)]
        while len(told) < 120:
            await asyncio.sleep(0)
            sizes.append(len(told) - sum(sizes))
        assert told == ["first"] * 20 + ["token"] * 100
        return sizes

    sizes = asyncio.run(hold())
    assert max(sizes) == 100 // async_engine._TURNS > async_engine._GROUP  # a round of 100 streams
    assert sizes[0] == async_engine._GROUP // async_engine._URGENT_SHARE


def test_a_stream_that_is_told_twice_is_told_once() -> None:
    async def hold() -> list[str]:
        told: list[str] = []
        rounds = _Rounds(asyncio.get_running_loop())
        stream: Any = Stream(told, "both")
        rounds.add(stream)
        rounds.add_urgent(stream)
        rounds.begin()
        await asyncio.sleep(0.02)
        return told

    assert asyncio.run(hold()) == ["both"]


@pytest.mark.parametrize("text", ["", "a", 'quote " and \\ and \n', "ünder 🙂"])
def test_a_plain_event_is_what_the_encoder_makes(server: LocalServer, text: str) -> None:
    writer = CompletionWriter(server.service, CompletionRequest(), 'a "model"')
    for end in (None, "stop", "length"):
        choice = {"index": 12, "text": text, "logprobs": None, "finish_reason": end}
        expected = data_event({**writer.base, "choices": [choice]})
        assert writer.plain_event(12, text, end) == expected  # type: ignore[arg-type]
    chat = ChatWriter(server.service, ChatRequest(messages=[]), 'a "model"')
    assert chat.text_event(12, text) == chat.chunk(12, {"content": text}, None)


def test_settings_that_are_given_again_are_the_same() -> None:
    defaults = SamplingParams(top_k=7)
    first = sampling_params(CompletionRequest(temperature=0.5, stop="a"), defaults)
    assert sampling_params(CompletionRequest(temperature=0.5, stop="a"), defaults) is first
    assert first == SamplingParams(top_k=7, temperature=0.5, stop="a")
    listed = sampling_params(CompletionRequest(stop=["a"]), defaults)
    assert listed == SamplingParams(top_k=7, stop=["a"])
