"""Prompts rendered from the event loop: in order, and each with its own fate."""

import asyncio
import os
import signal
import subprocess
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any, TypeVar

import psutil
import pytest
import uvloop

from lite_llama.errors import RequestError
from lite_llama.model_text import ModelText, read_tokenizer
from lite_llama.server import rendering
from lite_llama.server.rendering import Renderer
from lite_llama.text.tokenizer import Tokenizer
from tests.server.preset import preset_checkpoint

T = TypeVar("T")
TOKENIZER: Tokenizer = read_tokenizer(preset_checkpoint())  # type: ignore[assignment]
# Says its message; one of bytes that fill the memory stops the process.
TEMPLATE = "{{ messages[0].content.format('x') }}"
BOMB = "{:>9000000000}"


class Text(ModelText):
    """A template of its own, and a tokenizer."""

    def __init__(self, source: str | None) -> None:
        checkpoint = replace(preset_checkpoint(), chat_template=source)
        super().__init__(checkpoint, TOKENIZER, 1024)


def with_renderer(source: str | None, work: Callable[["Asker"], Coroutine[Any, Any, T]]) -> T:
    """What `work` returns in an event loop of its own."""

    async def run() -> T:
        return await work(Asker(source))

    return uvloop.run(run())


class Asker:
    def __init__(self, source: str | None) -> None:
        self._text = Text(source)
        self.renderer = Renderer(self._text)

    async def say(self, content: str) -> str:
        prompt = await self.render(content)
        return prompt if isinstance(prompt, str) else self._text.tokenizer.decode(prompt)

    async def render(self, content: str) -> str | list[int]:
        return await self.renderer.render(self._text.chat_template.question([{"content": content}]))

    @property
    def process(self) -> "subprocess.Popen[bytes]":
        assert self.renderer._worker is not None
        return self.renderer._worker._process


def test_questions_that_come_together_get_their_own_answers() -> None:
    async def work(asker: Asker) -> tuple[list[str], list[str]]:
        contents = [f"{number} " * (number * 40) for number in range(200)]
        return contents, await asyncio.gather(*map(asker.say, contents))

    contents, said = with_renderer(TEMPLATE, work)
    assert said == contents
    assert len(said[-1]) > 30_000


def test_short_prompts_come_as_token_ids_and_long_ones_as_text() -> None:
    async def work(asker: Asker) -> list[str | list[int]]:
        return [await asker.render(content) for content in contents]

    contents = ["<|im_start|>user", "ünder 🙂 ", "a " * 1024, "a " * 1024 + "a"]
    expected = [TOKENIZER.encode(content, add_special_tokens=False) for content in contents[:3]]
    assert with_renderer(TEMPLATE, work) == [*expected, contents[3]]


def test_plain_texts_are_encoded_as_the_tokenizer_does() -> None:
    texts = ["", "Once upon a time", "<|im_start|>user", "ünder 🙂\n\0", '{"chat": 1}']

    async def work(asker: Asker) -> list[list[int]]:
        return list(await asyncio.gather(*map(asker.renderer.encode, texts)))

    assert with_renderer(TEMPLATE, work) == [TOKENIZER.encode(text) for text in texts]


def test_a_lone_surrogate_is_refused() -> None:
    with pytest.raises(RequestError, match="lone surrogate"):
        with_renderer(TEMPLATE, lambda asker: asker.renderer.encode("a\ud800"))


@pytest.mark.parametrize("source", [None, "{% broken"])
def test_texts_need_no_template(source: str | None) -> None:
    async def work(asker: Asker) -> list[int]:
        return await asker.renderer.encode("Once upon a time")

    assert with_renderer(source, work) == TOKENIZER.encode("Once upon a time")


def test_a_text_is_encoded_though_the_process_dies(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "TIME_LIMIT_S", 0.3)

    async def work(asker: Asker) -> list[int]:
        assert await asker.say("a") == "a"
        os.kill(asker.process.pid, signal.SIGSTOP)
        return await asker.renderer.encode("Once upon a time")

    assert with_renderer(TEMPLATE, work) == TOKENIZER.encode("Once upon a time")


def test_a_question_longer_than_a_pipe_does_not_hold_the_loop() -> None:
    async def work(asker: Asker) -> tuple[int, int]:
        long = asyncio.create_task(asker.say("é\n" * 1_500_000))
        turns = 0
        while not long.done():
            await asyncio.sleep(0)
            turns += 1
        return len(long.result()), turns

    length, turns = with_renderer(TEMPLATE, work)
    assert length == 3_000_000
    assert turns > 20


def test_a_question_that_stops_the_process_is_alone_in_that() -> None:
    async def work(asker: Asker) -> list[Any]:
        contents = ["a", BOMB, "b", "c", BOMB, "d"]
        said = await asyncio.gather(*map(asker.say, contents), return_exceptions=True)
        return [*said, await asker.say("e")]

    said = with_renderer(TEMPLATE, work)
    assert [said[index] for index in (0, 2, 3, 5, 6)] == ["a", "b", "c", "d", "e"]
    for index in (1, 4):
        with pytest.raises(RequestError, match="was stopped: over 256 MiB or 2 s") as caught:
            raise said[index]
        assert caught.value.param == "messages"


def test_a_template_that_refuses_is_heard() -> None:
    async def work(asker: Asker) -> list[Any]:
        return await asyncio.gather(asker.say("a"), asker.say("b"), return_exceptions=True)

    source = "{% if messages[0].content == 'a' %}{{ raise_exception('no a') }}{% endif %}ok"
    refusal, said = with_renderer(source, work)
    assert str(refusal) == "the chat template refuses the messages: no a"
    assert said == "ok"


def test_a_process_that_hangs_is_replaced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rendering, "TIME_LIMIT_S", 0.3)

    async def work(asker: Asker) -> list[Any]:
        assert await asker.say("a") == "a"
        hung = asker.process
        os.kill(hung.pid, signal.SIGSTOP)
        said = await asyncio.gather(asker.say("b"), asker.say("c"), return_exceptions=True)
        assert hung.wait(5) == -signal.SIGKILL
        return [*said, asker.process.pid != hung.pid]

    stopped, said, is_another = with_renderer(TEMPLATE, work)
    assert isinstance(stopped, RequestError)
    assert (said, is_another) == ("c", True)


def test_a_process_that_starts_slowly_is_waited_for_in_peace(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rendering, "TIME_LIMIT_S", 0.3)
    looks = 0
    start, look = rendering._Worker.start, Renderer._look_for_silence

    async def start_late(*arguments: Any) -> Any:
        await asyncio.sleep(1)
        return await start(*arguments)

    def counting(renderer: Renderer, loop: asyncio.AbstractEventLoop) -> None:
        nonlocal looks
        looks += 1
        look(renderer, loop)

    monkeypatch.setattr(rendering._Worker, "start", start_late)
    monkeypatch.setattr(Renderer, "_look_for_silence", counting)
    assert with_renderer(TEMPLATE, lambda asker: asker.say("a")) == "a"
    assert 1 <= looks <= 10


def test_a_process_that_has_died_between_questions_costs_none() -> None:
    async def work(asker: Asker) -> str:
        assert await asker.say("a") == "a"
        asker.process.kill()
        asker.process.wait()
        return await asker.say("b")

    assert with_renderer(TEMPLATE, work) == "b"


def test_a_process_that_cannot_start_fails_those_who_ask(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> Any:
        raise OSError("too many open files")

    async def work(asker: Asker) -> list[Any]:
        with monkeypatch.context() as patch:
            patch.setattr(rendering, "start_worker", fail)
            said = await asyncio.gather(asker.say("a"), asker.say("b"), return_exceptions=True)
            ids = await asker.renderer.encode("a")
        return [*said, ids, await asker.say("c")]

    first, second, ids, said = with_renderer(TEMPLATE, work)
    assert str(first) == str(second) == "too many open files"
    assert (ids, said) == (TOKENIZER.encode("a"), "c")


def test_who_no_longer_waits_leaves_the_order_as_it_is() -> None:
    async def work(asker: Asker) -> list[str]:
        tasks = [asyncio.create_task(asker.say(str(number))) for number in range(20)]
        await asyncio.sleep(0)
        for task in tasks[::2]:
            task.cancel()
        await asyncio.wait(tasks)
        return [task.result() for task in tasks[1::2]]

    assert with_renderer(TEMPLATE, work) == [str(number) for number in range(1, 20, 2)]


def test_the_process_ends_with_the_renderer() -> None:
    async def work(asker: Asker) -> int:
        assert await asker.say("a") == "a"
        return asker.process.pid

    pid = with_renderer(TEMPLATE, work)
    assert not psutil.pid_exists(pid)
