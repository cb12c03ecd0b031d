"""Prompts made beside the event loop: chats rendered, and short texts tokenized.

The process that does it (text/prompt_worker.py) is asked and the loop goes on; it answers in order.
A thread that waited for it, or that tokenized, would have to win the GIL from a busy loop several
times a request.
"""

import asyncio
import contextlib
import json
import subprocess
import weakref
from collections import deque
from collections.abc import Callable

from lite_llama.errors import ModelFileError
from lite_llama.model_text import ModelText
from lite_llama.text.chat_template import TIME_LIMIT_S, opening, read_answer, start_worker

# So much longer a new process may be silent: it reads its tokenizer first, 0.1 to 0.4 s of a core.
_START_S = 10.0
# A line of output is bounded by the worker, by the length of its question.
_MAX_LINE_BYTES = 1 << 27


class Renderer:
    """A process that makes a model's prompts, and the questions on their way through it."""

    def __init__(self, text: ModelText) -> None:
        self._text = text
        self._opening = b""  # of a worker; made with the first
        self._asked: deque[tuple[bytes, asyncio.Future[bytes]]] = deque()
        self._worker: _Worker | None = None
        self._starting: asyncio.Task[None] | None = None
        self._heard = 0.0  # loop.time() from which the first of those asked has its time
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Have a process ready."""
        if not self._opening:
            source = None
            with contextlib.suppress(ModelFileError):  # whoever asks for a chat is told
                source = self._text.chat_template.source
            self._opening = opening(source, self._text.tokenizer.to_json())
        self._starting = asyncio.create_task(self._start())

    async def render(self, question: bytes) -> str | list[int]:
        """The prompt that a line of `ChatTemplate.question` asks for; RequestError as `render`.

        A short one comes as token ids.
        """
        return read_answer(await self._ask(question))

    async def encode(self, text: str) -> list[int]:
        """Token ids of a text that is short: those behind it wait. RequestError as
        `Tokenizer.encode`."""
        try:
            question = json.dumps({"text": text}, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            return self._text.tokenizer.encode(text)  # which says what is wrong
        line = b""
        with contextlib.suppress(OSError):  # no process, no pipe: it can be done here
            line = await self._ask(question + b"\n")
        prompt = read_answer(line) if line else text
        return self._text.tokenizer.encode(prompt) if isinstance(prompt, str) else prompt

    async def _ask(self, question: bytes) -> bytes:
        """The line that answers a question, or b"" if there is none within the limit, which begins
        when all before it are answered."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[bytes] = loop.create_future()
        if not self._asked:
            self._heard = max(self._heard, loop.time())
            if self._worker is not None and not self._worker.is_alive:
                self._drop_worker()  # it has died since the last answer
        self._asked.append((question, answer))
        if self._worker is not None:
            self._worker.write(question)
        elif self._starting is None:
            self.start()
        if self._timer is None:
            self._timer = loop.call_later(TIME_LIMIT_S, self._look_for_silence, loop)
        return await answer

    async def _start(self) -> None:
        """A new worker, for all that is asked."""
        try:
            self._worker = await _Worker.start(self._opening, self._take)
        except OSError as error:  # no memory, or no file descriptor
            while self._asked:
                _, answer = self._asked.popleft()
                if not answer.done():
                    answer.set_exception(error)
            return
        finally:
            self._starting = None
        self._heard = asyncio.get_running_loop().time() + _START_S
        for question, _ in self._asked:
            self._worker.write(question)

    def _take(self, line: bytes) -> None:
        """The next answer; b"" from a worker that has stopped, which is replaced."""
        if self._asked:
            _, answer = self._asked.popleft()
            if not answer.done():  # else its client has left
                answer.set_result(line)
            self._heard = answer.get_loop().time()
        if not line:
            self._drop_worker()
            if self._asked:
                self.start()

    def _look_for_silence(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        if self._worker is None:  # one is being started, and time counts once it is there
            self._heard = loop.time()
        elif self._asked and loop.time() - self._heard >= TIME_LIMIT_S:
            self._take(b"")
        if self._asked:
            rest = self._heard + TIME_LIMIT_S - loop.time()
            pause = min(max(0.0, rest), TIME_LIMIT_S)  # an answer may bring the end of it nearer
            self._timer = loop.call_later(pause, self._look_for_silence, loop)

    def _drop_worker(self) -> None:
        if self._worker is not None:
            self._worker.stop()
            self._worker = None


class _Lines(asyncio.Protocol):
    """What a worker says, by line, to a method; b"" when it says no more. Keeps nobody alive."""

    def __init__(self, take: Callable[[bytes], None]) -> None:
        self._take = weakref.WeakMethod(take)
        self._begun = bytearray()  # of a line
        self.is_over = False

    def data_received(self, data: bytes) -> None:
        """Hand out the lines that are whole."""
        if b"\n" not in data:
            self._begun += data
            if len(self._begun) > _MAX_LINE_BYTES:
                self._tell(b"")
            return
        *lines, rest = (bytes(self._begun) + data).split(b"\n")
        self._begun = bytearray(rest)
        for line in lines:
            self._tell(line + b"\n")

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002
        """The process has ended, or closed its end."""
        self._tell(b"")

    def _tell(self, line: bytes) -> None:
        take = self._take()
        if take is not None and not self.is_over:
            take(line)


class _Worker:
    """A process between two pipes."""

    _inlet: asyncio.WriteTransport
    _outlet: asyncio.ReadTransport

    def __init__(self, take: Callable[[bytes], None]) -> None:
        self._process = start_worker()
        self._end = weakref.finalize(self, _kill, self._process)
        self._lines = _Lines(take)

    @classmethod
    async def start(cls, opening: bytes, take: Callable[[bytes], None]) -> "_Worker":
        """A new process, ready for questions, whose answers the method `take` is told; OSError if
        there can be none."""
        loop, worker = asyncio.get_running_loop(), cls(take)
        lines = worker._lines
        worker._outlet, _ = await loop.connect_read_pipe(lambda: lines, worker._process.stdout)
        worker._inlet, _ = await loop.connect_write_pipe(
            asyncio.BaseProtocol, worker._process.stdin
        )
        worker.write(opening)
        return worker

    @property
    def is_alive(self) -> bool:
        """Whether its process has not ended."""
        return self._process.poll() is None

    def write(self, question: bytes) -> None:
        """Ask; what the pipe does not take at once follows by itself."""
        self._inlet.write(question)

    def stop(self) -> None:
        """End it; it tells no more."""
        self._lines.is_over = True
        self._inlet.close()
        self._outlet.close()
        self._end()


def _kill(process: "subprocess.Popen[bytes]") -> None:
    process.kill()
    process.wait()
