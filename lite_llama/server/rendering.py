"""Chat templates rendered from the event loop.

A template's process (see text/chat_template.py) is asked and the loop goes on; it answers in order.
A thread that waited for it would have to win the GIL from a busy loop several times a request.
"""

import asyncio
import contextlib
import subprocess
import weakref
from collections import deque

from lite_llama.model_text import ModelText
from lite_llama.text.chat_template import TIME_LIMIT_S, ChatTemplate

# A line of output is bounded by the worker, by the length of its question.
_MAX_LINE_BYTES = 1 << 27


class Renderer:
    """The process of a model's template, and the questions on their way through it."""

    def __init__(self, text: ModelText) -> None:
        self._text = text
        self._asked: deque[tuple[bytes, asyncio.Future[bytes]]] = deque()
        self._worker: _Worker | None = None
        self._reading: asyncio.Task[None] | None = None

    async def render(self, question: bytes) -> str:
        """The prompt that a line of `ChatTemplate.question` asks for; RequestError as `render`.

        The limit on its time begins when all before it are answered.
        """
        answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()
        self._asked.append((question, answer))
        if self._worker is not None:
            if self._worker.is_alive:
                self._worker.write(question)
            elif len(self._asked) == 1:  # it has died since the last answer
                self._drop_worker()
        if self._reading is None or self._reading.done():
            self._reading = asyncio.create_task(self._read())
        return self._text.chat_template.answer(await answer)

    async def _read(self) -> None:
        """Hand out answers until nothing is asked. A worker that fails on one is replaced."""
        while self._asked:
            if self._worker is None:
                try:
                    self._worker = await _Worker.start(self._text.chat_template)
                except OSError as error:  # no memory, or no file descriptor
                    self._fail_all(error)
                    return
                for question, _ in self._asked:
                    self._worker.write(question)
            line = await self._worker.read()
            _, answer = self._asked.popleft()
            if not answer.done():  # else its client has left
                answer.set_result(line)
            if not line:
                self._drop_worker()

    def _fail_all(self, error: OSError) -> None:
        while self._asked:
            _, answer = self._asked.popleft()
            if not answer.done():
                answer.set_exception(error)

    def _drop_worker(self) -> None:
        if self._worker is not None:
            self._worker.stop()
            self._worker = None


class _Worker:
    """A template's process between two pipes."""

    _inlet: asyncio.WriteTransport
    _outlet: asyncio.ReadTransport

    def __init__(self, template: ChatTemplate) -> None:
        self._process = template.start_worker()
        self._end = weakref.finalize(self, _kill, self._process)
        self._lines = asyncio.StreamReader(_MAX_LINE_BYTES)

    @classmethod
    async def start(cls, template: ChatTemplate) -> "_Worker":
        """A new process, ready for questions; OSError if there can be none."""
        loop, worker = asyncio.get_running_loop(), cls(template)
        worker._outlet, _ = await loop.connect_read_pipe(
            lambda: asyncio.StreamReaderProtocol(worker._lines), worker._process.stdout
        )
        worker._inlet, _ = await loop.connect_write_pipe(
            asyncio.BaseProtocol, worker._process.stdin
        )
        worker.write(template.opening)
        return worker

    @property
    def is_alive(self) -> bool:
        """Whether its process has not ended."""
        return self._process.poll() is None

    def write(self, question: bytes) -> None:
        """Ask; what the pipe does not take at once follows by itself."""
        self._inlet.write(question)

    async def read(self) -> bytes:
        """The next answer; b"" if none comes in time, or ever."""
        with contextlib.suppress(TimeoutError, ValueError, OSError):  # ValueError: no end of a line
            async with asyncio.timeout(TIME_LIMIT_S):
                line = await self._lines.readline()
                return line if line.endswith(b"\n") else b""
        return b""

    def stop(self) -> None:
        """End it."""
        self._inlet.close()
        self._outlet.close()
        self._end()


def _kill(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
