"""The process that renders one chat template, under limits on steps, memory and output.

Started by chat_template.py as a script. It reads one JSON object a line: first {"template",
"tokenizer"}, the template's source and, for a server, a tokenizer.json; then the variables of each
rendering, which it answers with one JSON object a line. With a tokenizer, it answers a short prompt
by its token ids: a server's event loop has other things to do. It imports nothing of lite_llama, so
that it starts in 50 ms and its memory limit can be small.
"""

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
_SHORT = 2 << 10

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


def _render(
    environment: minijinja.Environment, tokenizer: tokenizers.Tokenizer | None, line: bytes
) -> dict[str, Any]:
    """Answer one request: {"text"}, {"ids"} or {"error"}."""
    limit = _OUTPUT_FACTOR * len(line) + _OUTPUT_ALLOWANCE
    try:
        text: str = environment.render_template("chat", **json.loads(line))
        if tokenizer is not None and len(text) <= min(limit, _SHORT):
            [encoding] = tokenizer.encode_batch_fast([text], add_special_tokens=False)
            return {"ids": encoding.ids}
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
    return {"text": text}


def _limit_memory() -> None:
    """From now on this process may have so much more than it has."""
    if sys.platform == "linux":  # macOS does not enforce RLIMIT_AS
        import resource

        num_pages = int(Path("/proc/self/statm").read_text().split()[0])
        limit = num_pages * resource.getpagesize() + _MEMORY_LIMIT_BYTES
        resource.setrlimit(resource.RLIMIT_AS, (limit, limit))


def _main() -> None:
    opening = json.loads(sys.stdin.buffer.readline())
    source, form = opening["template"], opening["tokenizer"]
    tokenizer = None if form is None else tokenizers.Tokenizer.from_str(form)
    del opening, form
    _limit_memory()
    environment = compile_template(source)
    for line in sys.stdin.buffer:
        print(json.dumps(_render(environment, tokenizer, line)), flush=True)  # noqa: T201


if __name__ == "__main__":
    _main()
