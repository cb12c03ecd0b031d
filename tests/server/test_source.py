"""X5: what the source must not contain, because others were broken by it."""

import ast
from pathlib import Path

import pytest

import lite_llama

ROOT = Path(lite_llama.__file__).parent
MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "marshal", "shelve", "yaml", "transformers"}
CALLS = {"eval", "exec", "compile_command"}
ATTRIBUTES = {("torch", "load"), ("torch", "save"), ("yaml", "load"), ("os", "system")}
OUTBOUND = {"requests", "urllib.request", "http.client", "aiohttp"}


def calls(tree: ast.AST) -> list[ast.Call]:
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def imported(tree: ast.AST) -> set[str]:
    names = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
    return names


SERVING = [
    path for path in sorted(ROOT.rglob("*.py")) if "bench" not in path.relative_to(ROOT).parts
]


@pytest.mark.parametrize("path", SERVING, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_module_runs_foreign_data_as_code(path: Path) -> None:
    tree = ast.parse(path.read_text())
    names = {name.partition(".")[0] for name in imported(tree)}
    assert not names & MODULES
    assert not imported(tree) & OUTBOUND
    for call in calls(tree):
        if isinstance(call.func, ast.Name):
            assert call.func.id not in CALLS
        if isinstance(call.func, ast.Attribute) and isinstance(call.func.value, ast.Name):
            assert (call.func.value.id, call.func.attr) not in ATTRIBUTES
        assert not any(
            keyword.arg == "shell" and getattr(keyword.value, "value", None) is True
            for keyword in call.keywords
        )


@pytest.mark.parametrize(
    "path",
    [
        *sorted((ROOT / "server").glob("*.py")),
        ROOT / "engine" / "sampling_params.py",
        ROOT / "text" / "grammar.py",
    ],
    ids=lambda path: path.name,
)
def test_no_check_is_an_assert(path: Path) -> None:
    assert not [
        node for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Assert)
    ]
