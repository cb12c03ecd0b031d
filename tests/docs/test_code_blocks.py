"""The documents are true: their code runs, their commands exist, their files and names are there.

A `python` block runs, with those before it on the same page, in one process a page; with `file=` in
its fence it is a quotation instead. The `lite-llama` commands of `bash` blocks run where that is
cheap. What has a cost (make, pip, benchmarks) is only looked up.
"""

import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from lite_llama.bench.ops.run import operators
from lite_llama.formats.block_sizes import BLOCK_SIZES
from lite_llama.models.families import FAMILIES

ROOT = Path(__file__).parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")])
EXAMPLES = sorted(ROOT.glob("examples/*.py"))
CLI = (sys.executable, "-m", "lite_llama.cli")
# Commands that answer within seconds.
CHEAP = ("generate", "inspect", "doctor")
# Commands of other projects, with nothing of ours to look up.
FOREIGN = ("pip", "git", ".", "ruff", "mypy", "lint-imports", "curl", "ray", "serve", "kubectl")

_FENCE = re.compile(r"^```(\w+)(?: file=(\S+))?\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_LINK = re.compile(r"\]\(([^)#\s]+)")
_CODE_SPAN = re.compile(r"`([^`\n]+)`")
_FILE = re.compile(r"[\w.-]+(/[\w.-]+)+/?|[\w-]+\.(py|md)")
_COMMIT = re.compile(r"[0-9a-f]{7}")
_NAME = re.compile(r"_?[A-Za-z]\w*(\.\w+)*")
# Written by a run, not kept in the repository.
WRITTEN = ("bench/log", "bench/plots")


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, the file it quotes, its text, and the line it starts at."""

    language: str
    quoted: str | None
    text: str
    line: int


@cache
def blocks(page: Path) -> list[Block]:
    text = page.read_text()
    found = [
        Block(match[1], match[2], match[3], text.count("\n", 0, match.start(3)))
        for match in _FENCE.finditer(text)
    ]
    assert len(found) * 2 == len(re.findall("^```", text, re.MULTILINE)), f"{page}: odd fences"
    return found


def prose(page: Path) -> str:
    """The page without its fenced blocks."""
    return _FENCE.sub("", page.read_text())


def pages_with(language: str) -> list[Path]:
    return [
        page
        for page in PAGES
        if any(block.language == language and not block.quoted for block in blocks(page))
    ]


def page_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@cache  # README and Makefile share a command
def run(*command: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize("page", pages_with("python"), ids=page_name)
def test_the_python_of_a_page_runs(page: Path) -> None:
    source = ["namespace = {}"]
    for block in blocks(page):
        if block.language == "python" and not block.quoted:
            # Moved to its own lines, so that a traceback names the page's line.
            text = "\n" * block.line + block.text
            source.append(f"exec(compile({text!r}, {str(page)!r}, 'exec'), namespace)")
    done = run(sys.executable, "-c", "\n".join(source))
    assert done.returncode == 0, done.stderr


def test_quotations_are_what_the_files_say() -> None:
    quotations = [
        (page, block) for page in PAGES for block in blocks(page) if block.quoted is not None
    ]
    assert quotations
    for page, block in quotations:
        source = (ROOT / str(block.quoted)).read_text()
        assert block.text in source, f"{page}:{block.line}: {block.quoted} says something else"


def commands() -> Iterator[tuple[str, list[str]]]:
    """(page and line, words) of every command in a bash block, without its comment."""
    for page in PAGES:
        for block in blocks(page):
            if block.language == "bash":
                for offset, line in enumerate(block.text.splitlines(), 1):
                    for part in line.split("&&"):
                        words = shlex.split(part, comments=True)
                        if words:
                            yield f"{page_name(page)}:{block.line + offset}", words


def cli_commands() -> dict[str, list[str]]:
    """The arguments of each different `lite-llama` command, by its text."""
    found = [words[1:] for _, words in commands() if words[0] == "lite-llama"]
    return {shlex.join(words): words for words in found}


@pytest.mark.parametrize(
    "words", [words for words in cli_commands().values() if words[0] in CHEAP], ids=shlex.join
)
def test_a_cheap_command_succeeds(words: list[str]) -> None:
    done = run(*CLI, *words)
    assert done.returncode == 0, done.stderr
    assert len(done.stdout.strip()) > 20


@cache
def help_of(words: tuple[str, ...]) -> str:
    done = run(*CLI, *words, "--help")
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_costly_commands_and_their_options_exist() -> None:
    costly = [words for words in cli_commands().values() if words[0] not in CHEAP]
    assert costly
    for words in costly:
        depth = 2 if words[0] == "bench" else 1
        text = help_of(tuple(words[:depth]))
        for option in (word for word in words if word.startswith("--")):
            assert re.search(rf"{option}\b(?!-)", text), f"{shlex.join(words)}: no option {option}"
        if words[:2] == ["bench", "ops"] and len(words) > 2:
            assert words[2] in operators()


def test_other_commands_name_what_exists() -> None:
    targets = re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    for where, words in commands():
        if words[0] == "make":
            assert words[1] in targets, f"{where}: no make target {words[1]}"
        elif words[:2] == ["python", "-m"]:
            check_python_command(where, words[2:])
        else:
            assert words[0] in (*FOREIGN, "lite-llama"), f"{where}: unknown command {words[0]}"


def check_python_command(where: str, words: list[str]) -> None:
    if words[0] == "pytest":
        for path in words[1:]:
            assert (ROOT / path).exists(), f"{where}: {path} does not exist"
        return
    module = ROOT / (words[0].replace(".", "/") + ".py")
    assert module.is_file(), f"{where}: no module {words[0]}"
    for option in (word for word in words if word.startswith("--")):
        assert f'"{option}"' in module.read_text(), f"{where}: no option {option}"


def test_the_readme_shows_what_make_demo_answers() -> None:
    line = re.search(r"lite-llama (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert line is not None
    done = run(*CLI, *shlex.split(line[1]))
    assert done.returncode == 0, done.stderr
    shown = next(block.text for block in blocks(ROOT / "README.md") if block.language == "text")
    assert shown.splitlines()[0] == done.stdout.strip()
    # The figures are a machine's own; their form is not.
    assert re.sub(r"\d", "0", shown.splitlines()[1].split(",")[0]) in re.sub(
        r"\d", "0", done.stderr
    )


def test_the_readme_names_every_architecture_and_format() -> None:
    cells = re.findall(r"[\w.]+", prose(ROOT / "README.md"))
    for family in FAMILIES:
        assert set(family.hf_architectures + family.gguf_architectures) <= set(cells)
    assert set(BLOCK_SIZES) <= set(cells)


def test_every_operator_keeps_the_readmes_promise() -> None:
    folders = [path.parent for path in ROOT.glob("lite_llama/ops/*/op.py")]
    assert len(folders) > 10
    for folder in folders:
        for file in ("reference.py", "kernel.py"):
            assert (folder / file).is_file(), f"{folder.name} has no {file}"
        assert (ROOT / f"tests/ops/test_{folder.name}.py").is_file()
        assert folder.name in operators()


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_links_files_and_names_of_a_page_exist(page: Path) -> None:
    text = prose(page)
    for link in _LINK.findall(text):
        if "://" not in link:
            assert (page.parent / link).exists(), f"link to {link}"
    for span in _CODE_SPAN.findall(text):
        if _FILE.fullmatch(span):
            assert file_exists(span, page.parent), f"no file {span}"
        elif _NAME.fullmatch(span) and not _COMMIT.fullmatch(span):
            missing = set(span.split(".")) - words_of_the_code()
            assert not missing, f"`{span}` is nowhere in the code"


def file_exists(name: str, beside: Path) -> bool:
    if name in WRITTEN:
        return True
    bases = (ROOT, ROOT / "lite_llama", beside)
    return any((base / name).exists() for base in bases) or any(
        path.name == name for path in source_files()
    )


@cache
def source_files() -> tuple[Path, ...]:
    folders = ("lite_llama", "tests", "examples")
    found = [path for folder in folders for path in (ROOT / folder).rglob("*.py")]
    return (*found, ROOT / "pyproject.toml", ROOT / "Makefile")


@cache
def words_of_the_code() -> frozenset[str]:
    words: set[str] = set()
    for path in source_files():
        if path != Path(__file__):
            words.update(re.findall(r"\w+", path.read_text()))
    return frozenset(words)


def test_the_commits_that_pages_name_exist() -> None:
    if run("git", "rev-parse", "--is-shallow-repository").stdout.strip() != "false":
        pytest.skip("no git history here")
    spans = [span for page in PAGES for span in _CODE_SPAN.findall(prose(page))]
    commits = {span for span in spans if _COMMIT.fullmatch(span)}
    assert commits
    for commit in commits:
        assert run("git", "cat-file", "-e", f"{commit}^{{commit}}").returncode == 0, commit


def test_the_examples_run_and_print_their_results() -> None:
    expected = {"generate.py": "Paris", "score.py": "The sun rises", "stream.py": "tokens]"}
    assert [path.name for path in EXAMPLES] == list(expected)
    # By way of -c, so that the checkout is on the path; one process, since torch loads slowly.
    paths = [str(path) for path in EXAMPLES]
    script = f"import runpy\nfor path in {paths}:\n    print('==')\n    runpy.run_path(path)"
    done = run(sys.executable, "-c", script)
    assert done.returncode == 0, done.stderr
    for printed, text in zip(done.stdout.split("==\n")[1:], expected.values(), strict=True):
        assert text in printed
