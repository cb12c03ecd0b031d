"""Compile every launch in `cases/` without a GPU and note registers, spills and shared memory.

A case is a call of an operator's launcher on meta tensors. Its kernel launches are caught before
they reach a driver, so that what is compiled has the very signature, alignment and launch
configuration the GPU would get. `python -m tests.compile.record` rewrites resources.json.
"""

import argparse
import importlib
import json
import os
import pkgutil
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

RESOURCES = Path(__file__).with_name("resources.json")
ARCHITECTURES = ("sm_80", "sm_90", "sm_100", "sm_120")

Usage = dict[str, int]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--print", choices=ARCHITECTURES, help="compile for one, print JSON")
    parser.add_argument("--only", default="", help="cases whose name starts with this")
    options = parser.parse_args()
    if options.print:
        print(json.dumps(compile_all(options.print, options.only)))
        return
    recorded = compile_everywhere(options.only)
    if options.only and RESOURCES.exists():
        known = json.loads(RESOURCES.read_text())
        for arch in ARCHITECTURES:
            kept = {k: v for k, v in known[arch].items() if not k.startswith(options.only)}
            recorded[arch] = kept | recorded[arch]
    RESOURCES.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n")


def compile_everywhere(only: str = "") -> dict[str, dict[str, Usage]]:
    """{architecture: {case: usage}}, each architecture in a process of its own, two at a time.

    Fresh processes, because Triton binds its interpreter (which the other tests use) at import.
    """

    def compile_in_process(arch: str) -> dict[str, Usage]:
        found: dict[str, Usage] = run_module(
            "tests.compile.record", "--print", arch, "--only", only
        )
        return found

    with ThreadPoolExecutor(2) as pool:
        return dict(zip(ARCHITECTURES, pool.map(compile_in_process, ARCHITECTURES), strict=True))


def compile_all(arch: str, only: str = "") -> dict[str, Usage]:
    """{case/kernel: usage} of every case whose name starts with `only`."""
    usages: dict[str, Usage] = {}
    for name, call in sorted(all_cases().items()):
        if name.startswith(only):
            for index, (kernel, usage) in enumerate(_compile_case(call, arch)):
                usages[f"{name} {index} {kernel}"] = usage
    return usages


def all_cases() -> dict[str, Callable[[], object]]:
    """Every case of every module in `cases/`, as "operator: case"."""
    package = importlib.import_module("tests.compile.cases")
    cases = {}
    for module in pkgutil.iter_modules(package.__path__):
        loaded = importlib.import_module(f"tests.compile.cases.{module.name}")
        cases.update({f"{module.name}: {name}": call for name, call in loaded.CASES.items()})
    return cases


def run_module(name: str, *arguments: str) -> Any:
    """The JSON that a module prints, run in a process without the interpreter."""
    environment = {k: v for k, v in os.environ.items() if k != "TRITON_INTERPRET"}  # noqa: TID251
    command = [sys.executable, "-m", name, *arguments]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, f"{command}: {done.stderr[-4000:]}"
    return json.loads(done.stdout)


def _compile_case(call: Callable[[], object], arch: str) -> Iterator[tuple[str, Usage]]:
    with caught_launches(arch) as launches:
        call()
    assert launches, "the case launches no kernel"
    for function, args, kwargs in launches:
        kernel = compile_launch(function, args, kwargs, arch)
        usage = usage_of(kernel.asm["cubin"]) | {"shared_bytes": kernel.metadata.shared}
        yield function.__name__, usage


@contextmanager
def caught_launches(arch: str) -> Iterator[list[tuple[Any, Any, Any]]]:
    from lite_llama.kernel_lib import gpu

    specs = {"sm_80": gpu.A100, "sm_90": gpu.H200, "sm_100": gpu.B200, "sm_120": gpu.RTX_5090}
    launches: list[tuple[Any, Any, Any]] = []

    def catch(self: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        del grid, warmup
        launches.append((self, args, kwargs))

    with launches_go_to(catch, specs[arch]):
        yield launches


@contextmanager
def launches_go_to(run: Callable[..., None], spec: Any) -> Iterator[None]:
    """Have `run` in the place of JITFunction.run, and `spec` for every device but CUDA's."""
    from triton.runtime.jit import JITFunction

    from lite_llama.kernel_lib import gpu

    real_run, real_spec = JITFunction.run, gpu.INTERPRETER
    JITFunction.run, gpu.INTERPRETER = run, spec
    try:
        yield
    finally:
        JITFunction.run, gpu.INTERPRETER = real_run, real_spec


def compile_launch(function: Any, args: Any, kwargs: Any, arch: str) -> Any:
    """The compiled kernel of a caught launch."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, make_backend
    from triton.experimental.gluon._runtime import GluonASTSource, GluonJITFunction
    from triton.runtime.jit import create_function_from_signature

    target = GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)
    backend = make_backend(target)
    binder = create_function_from_signature(function.signature, function.params, backend)
    bound, specialization, rest = binder(*args, **kwargs)
    options, signature, constants, attributes = function._pack_args(
        backend, rest, bound, specialization, rest
    )
    kind = GluonASTSource if isinstance(function, GluonJITFunction) else ASTSource
    source = kind(function, signature, constants, attributes)
    return triton.compile(source, target=target, options=options.__dict__)


def usage_of(cubin: bytes) -> Usage:
    """Registers of a thread, and bytes of stack: what spilled."""
    import triton

    tool = Path(triton.__file__).parent / "backends/nvidia/bin/cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        text = subprocess.run(
            [str(tool), "-res-usage", file.name], capture_output=True, text=True, check=True
        ).stdout
    registers, stack = re.search(r"REG:(\d+) STACK:(\d+)", text).groups()  # type: ignore[union-attr]
    return {"registers": int(registers), "spill_bytes": int(stack)}


if __name__ == "__main__":
    main()
