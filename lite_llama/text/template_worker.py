"""The process that renders one chat template, under limits on steps, memory and output.

Started by chat_template.py as a script. It reads one JSON object a line: first the template's
source, then the variables of each rendering; it answers each with one JSON object a line. It
imports nothing of lite_llama, so that it starts in 50 ms and its memory limit can be small.
"""

import json
import re
import sys
from datetime import datetime
from typing import Any

import minijinja

# minijinja counts a unit of fuel for every instruction; 10**6 take about 20 ms. What one
# instruction may allocate ("x" ~ "x", str.format) it does not limit: hence the memory limit.
_FUEL = 10**6
_MEMORY_LIMIT_BYTES = 256 << 20
_OUTPUT_FACTOR, _OUTPUT_ALLOWANCE = 4, 64 << 10

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


def _render(environment: minijinja.Environment, line: bytes) -> dict[str, str]:
    """Answer one request: {"text"} or {"error"}."""
    limit = _OUTPUT_FACTOR * len(line) + _OUTPUT_ALLOWANCE
    try:
        text: str = environment.render_template("chat", **json.loads(line))
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
    if sys.platform == "linux":  # macOS does not enforce RLIMIT_AS
        import resource

        resource.setrlimit(resource.RLIMIT_AS, (_MEMORY_LIMIT_BYTES, _MEMORY_LIMIT_BYTES))


def _main() -> None:
    _limit_memory()
    environment = compile_template(json.loads(sys.stdin.buffer.readline()))
    for line in sys.stdin.buffer:
        print(json.dumps(_render(environment, line)), flush=True)  # noqa: T201 - the answer


if __name__ == "__main__":
    _main()
