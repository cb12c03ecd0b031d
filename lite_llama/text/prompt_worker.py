"""The process that makes prompts: it renders a chat template, under limits, and tokenizes.

Started by chat_template.py as a script. It reads one JSON object a line, first {"template",
"tokenizer"}, the template's source and, for a server, a tokenizer.json; either may be null. Then
come questions, each answered by a line: {"chat": the template's variables} or {"text": a plain
prompt}. With a tokenizer a text, and a short chat, is answered by its token ids: a server's event
loop has other things to do. It imports nothing of lite_llama, so that it starts in 50 ms and its
memory limit can be small.
"""

import ctypes
import json
import re
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import minijinja
import tokenizers

# minijinja counts a unit of fuel for every instruction; 10**6 take about 20 ms. What one
# instruction may allocate ("x" ~ "x", str.format) it does not limit: hence the memory limit.
_FUEL = 10**6
_MEMORY_LIMIT_BYTES = 256 << 20
_OUTPUT_FACTOR, _OUTPUT_ALLOWANCE = 4, 64 << 10
# Characters of a prompt that is tokenized here, in 0.2 ms; those behind it wait.
SHORT_PROMPT = 2 << 10

# transformers marks what the assistant said with {% generation %}; it renders as its content.
_GENERATION_TAG = re.compile(r"\{%([-+]?)\s*(end)?generation\s*([-+]?)%\}")


class _RaisedByTemplateError(Exception):
    """The template called raise_exception."""


def compile_template(source: str) -> minijinja.Environment:
    """Return an environment whose template "chat" is `source`, set up as transformers does
    (utils/chat_template_utils.py). Raises minijinja.TemplateError for a syntax error."""
    environment = minijinja.Environment(fuel=_FUEL, trim_blocks=True, lstrip_blocks=True)
    environment.add_filter("tojson", _tojson)
    environment.add_test("iterable", _is_iterable)
    environment.add_global("raise_exception", _raise_exception)
    environment.add_global("strftime_now", _strftime_now)
    environment.add_template("chat", _GENERATION_TAG.sub(_as_condition, source))
    return environment


def _as_condition(tag: re.Match[str]) -> str:
    opening, end, closing = tag.groups()
    return f"{{%{opening} {'endif' if end else 'if true'} {closing}%}}"


def _tojson(
    value: Any,
    ensure_ascii: bool = False,  # noqa: FBT001, FBT002 - the filter's signature in transformers
    indent: int | None = None,
    separators: tuple[str, str] | None = None,
    sort_keys: bool = False,  # noqa: FBT001, FBT002
) -> str:
    return json.dumps(
        value, ensure_ascii=ensure_ascii, indent=indent, separators=separators, sort_keys=sort_keys
    )


def _is_iterable(value: Any) -> bool:
    """As in jinja2; minijinja's own test holds for none."""
    return hasattr(value, "__iter__")


def _raise_exception(message: str) -> None:
    raise _RaisedByTemplateError(message)


def _strftime_now(form: str) -> str:
    return datetime.now().strftime(form)


class _Worker:
    def __init__(
        self, template: minijinja.Environment | None, tokenizer: tokenizers.Tokenizer | None
    ) -> None:
        self._template = template
        self._tokenizer = tokenizer

    def answer(self, line: bytes) -> dict[str, Any]:
        """{"text"}, {"ids"} or {"error"}."""
        question = json.loads(line)
        if "chat" in question:
            return self._render(question["chat"], _OUTPUT_FACTOR * len(line) + _OUTPUT_ALLOWANCE)
        return self._tokenize(question["text"], add_special_tokens=True)

    def _render(self, variables: dict[str, Any], limit: int) -> dict[str, Any]:
        assert self._template is not None
        try:
            text: str = self._template.render_template("chat", **variables)
        except _RaisedByTemplateError as error:
            return {"error": f"the chat template refuses the messages: {error}"}
        except minijinja.TemplateError as error:
            if error.kind == "OutOfFuel":
                return {"error": f"the chat template needs more than {_FUEL} steps; send less"}
            return {"error": f"the chat template fails on line {error.line}: {error.message}"}
        except MemoryError:
            raise  # as when Rust runs out of memory: the process ends
        except Exception as error:  # noqa: BLE001 - from any method that the template called
            return {"error": f"the chat template fails: {error}"}
        if len(text) > limit:
            return {"error": f"the chat template wrote {len(text)} characters, limit {limit}"}
        if self._tokenizer is None or len(text) > SHORT_PROMPT:
            return {"text": text}
        return self._tokenize(text, add_special_tokens=False)

    def _tokenize(self, text: str, *, add_special_tokens: bool) -> dict[str, Any]:
        assert self._tokenizer is not None
        [encoding] = self._tokenizer.encode_batch_fast(
            [text], add_special_tokens=add_special_tokens
        )
        return {"ids": encoding.ids}


def _limit_memory() -> None:
    """From now on this process may have so much more than it has."""
    if sys.platform == "linux":  # macOS does not enforce RLIMIT_AS
        import resource

        # glibc keeps what reading a tokenizer took: of 128000 tokens 150 MB.
        if (give_back := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
            give_back(0)
        num_pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = num_pages * resource.getpagesize() + _MEMORY_LIMIT_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _main() -> None:
    opening = json.loads(sys.stdin.buffer.readline())
    source, form = opening["template"], opening["tokenizer"]
    tokenizer = None if form is None else tokenizers.Tokenizer.from_str(form)
    del opening, form
    _limit_memory()
    worker = _Worker(None if source is None else compile_template(source), tokenizer)
    for line in sys.stdin.buffer:
        print(json.dumps(worker.answer(line)), flush=True)  # noqa: T201 - the answer


if __name__ == "__main__":
    _main()
