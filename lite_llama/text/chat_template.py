"""A model's chat template: messages to the prompt's text.

Templates are programs that come with the model file, so they are run as hostile ones: by
minijinja with a bound on steps, in a child process with a bound on memory and time
(prompt_worker.py), on plain JSON values.
"""

import json
import subprocess
import sys
import threading
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import minijinja

from lite_llama.errors import ModelFileError, RequestError
from lite_llama.text.prompt_worker import compile_template

_SOURCE_LIMIT = 1 << 20
TIME_LIMIT_S = 2.0
_STOPPED = "the chat template was stopped: over 256 MiB or 2 s, or minijinja broke; send less"
_OWN_VARIABLES = frozenset({"messages", "tools", "add_generation_prompt", "bos_token", "eos_token"})


class ChatTemplate:
    """One chat template, whose text is `source`; safe to share between threads, which render one
    after another.

    Raises ModelFileError if there is no template (`source` is None) or it cannot be parsed. A
    model without one is not given another model's format: its answers would be quietly worse.
    """

    def __init__(self, source: str | None, *, bos_token: str, eos_token: str) -> None:
        if source is None:
            raise ModelFileError(
                "the model has no chat template: use plain completion, or put its template into"
                " chat_template.jinja beside the weights"
            )
        if len(source) > _SOURCE_LIMIT:
            raise ModelFileError(
                f"the chat template has {len(source)} characters, limit {_SOURCE_LIMIT}"
            )
        try:
            compile_template(source)
        except minijinja.TemplateError as error:
            raise ModelFileError(
                f"the chat template has an error on line {error.line}: {error.message}"
            ) from error
        self.source = source
        self._tokens = {"bos_token": bos_token, "eos_token": eos_token}
        self._lock = threading.Lock()
        self._worker: subprocess.Popen[bytes] | None = None

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: list[dict[str, Any]] | None = None,
        **kwargs: Any,
    ) -> str:
        """Return the prompt for `messages` (`{"role", "content", ...}`, JSON values only).

        `kwargs` are further variables of the template. Raises RequestError, `param="messages"`,
        if the template refuses the messages, fails on them, or passes a limit: 10**6 steps,
        4 characters out for each one in plus 64 KiB, 256 MiB, 2 s.
        """
        line = self.question(
            messages, add_generation_prompt=add_generation_prompt, tools=tools, **kwargs
        )
        with self._lock:
            text = read_answer(self._ask(line))
        assert isinstance(text, str)
        return text

    def question(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        add_generation_prompt: bool = True,
        tools: list[dict[str, Any]] | None = None,
        **kwargs: Any,
    ) -> bytes:
        """The line that asks a worker for what `render` returns; the same errors in its input."""
        taken = sorted(_OWN_VARIABLES & kwargs.keys())
        if taken:
            raise RequestError(
                f"the template variable {taken[0]} cannot be set by a request; leave it out",
                param="chat_template_kwargs",
            )
        if not all(isinstance(message, Mapping) for message in messages):
            raise RequestError(
                'messages has an entry that is no {"role", "content"} map', param="messages"
            )
        variables = {
            **kwargs,
            **self._tokens,
            "messages": [dict(message) for message in messages],
            "tools": tools,
            "documents": None,
            "add_generation_prompt": add_generation_prompt,
        }
        try:
            return json.dumps({"chat": variables}, ensure_ascii=False).encode() + b"\n"
        except (TypeError, ValueError, RecursionError) as error:
            raise RequestError(
                f"messages and tools must be JSON values: {error}", param="messages"
            ) from error

    def _ask(self, line: bytes) -> bytes:
        """The line that answers a question; b"" if there is none within the limit."""
        if self._worker is None or self._worker.poll() is not None:
            self._worker = start_worker()
            weakref.finalize(self, _stop, self._worker)
            line = opening(self.source, None) + line
        inlet, outlet = self._worker.stdin, self._worker.stdout
        assert inlet is not None
        assert outlet is not None
        timer = threading.Timer(TIME_LIMIT_S, self._worker.kill)
        timer.start()
        try:
            inlet.write(line)
            inlet.flush()
            answer = outlet.readline()
        except BrokenPipeError:
            answer = b""
        finally:
            timer.cancel()
        if answer.endswith(b"\n"):
            return answer
        _stop(self._worker)
        return b""


def opening(template: str | None, tokenizer: str | None) -> bytes:
    """The line before a worker's first question: a template's source and a tokenizer.json."""
    return json.dumps({"template": template, "tokenizer": tokenizer}).encode() + b"\n"


def read_answer(line: bytes) -> str | list[int]:
    """The prompt in a worker's line, or its RequestError; b"" is what a stopped one says.

    A worker with a tokenizer gives the token ids of a short prompt in place of its text.
    """
    content: dict[str, Any] = json.loads(line) if line else {"error": _STOPPED}
    if "error" in content:
        raise RequestError(content["error"].partition("\n")[0], param="messages")
    prompt: str | list[int] = content["ids"] if "ids" in content else content["text"]
    return prompt


def start_worker() -> "subprocess.Popen[bytes]":
    """A process that answers lines of its stdin on its stdout; kill it to end it."""
    # -P: the worker's directory is not searched for modules.
    command = [sys.executable, "-P", str(Path(__file__).with_name("prompt_worker.py"))]
    return subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        start_new_session=True,  # Ctrl-C at the terminal is not meant for it
    )


def _stop(worker: "subprocess.Popen[bytes]") -> None:
    worker.kill()
    worker.communicate()
