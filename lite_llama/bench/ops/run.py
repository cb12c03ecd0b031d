"""Time operators: `python -m lite_llama.bench.ops.run [NAME ...]`."""

import importlib
import pkgutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

import lite_llama.bench.ops as benches
from lite_llama.bench import record
from lite_llama.bench.harness import Case, Machine, Timing, measure_machine, run_case
from lite_llama.errors import ConfigError, OperatorError

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}
DTYPE_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_PREFIX = "bench_"


def operators() -> list[str]:
    """Names of all operators that have a benchmark."""
    modules = pkgutil.iter_modules(benches.__path__)
    return sorted(m.name.removeprefix(_PREFIX) for m in modules if m.name.startswith(_PREFIX))


def main(
    names: Sequence[str] = (),
    device: str = "cuda",
    dtype: str = "bf16",
    profile: Path | None = None,
    log: Path = record.DEFAULT_FOLDER,
) -> None:
    """Time the named operators (all, if none is named), print a table, append to the log.

    `dtype` is "fp32", "fp16" or "bf16"; `profile` is a folder for torch-profiler traces.
    """
    unknown = sorted(set(names) - set(operators()))
    if unknown:
        raise ConfigError(f"no benchmark of operator {unknown[0]!r}; one of {operators()}")
    if dtype not in DTYPES:
        raise ConfigError(f"dtype is {dtype!r}, expected one of {sorted(DTYPES)}")
    if device.startswith("cuda") and not torch.cuda.is_available():
        raise ConfigError(f"device is {device!r}, but there is no CUDA device; use --device cpu")
    target = torch.device(device)
    run = record.describe_run(target)
    machine = measure_machine(target)
    print(f"{run.gpu}, torch {run.torch}, triton {run.triton}, commit {run.commit}")
    print("  ".join(f"{name} {value:.4g}" for name, value in machine.roofs.items()))
    failures = []
    for name in names or operators():
        begin = time.perf_counter()
        for case in _cases(name, target, DTYPES[dtype]):
            try:
                timings = run_case(case, machine, profile)
            except RuntimeError as failure:  # one bad kernel must not cost the run on a lent GPU
                failures.append(f"{name} {case.name}: {failure}")
                print(failures[-1], flush=True)
                continue
            lines = _lines(name, case, timings, machine)
            record.append(run, lines, log)
            print("\n".join(map(_row, lines)), flush=True)
        print(f"{name}: {time.perf_counter() - begin:.1f} s", flush=True)
    if failures:
        raise OperatorError("; ".join(failures))


def _cases(name: str, device: torch.device, dtype: torch.dtype) -> list[Case]:
    torch.manual_seed(0)
    module = importlib.import_module(f"{benches.__name__}.{_PREFIX}{name}")
    cases: list[Case] = module.cases(device, dtype)
    return cases


def _lines(
    name: str, case: Case, timings: dict[str, Timing], machine: Machine
) -> list[dict[str, Any]]:
    return [
        _line(name, case, engine, timing, machine.roof_fraction(case, timing.median_us))
        for engine, timing in timings.items()
    ]


def _line(name: str, case: Case, engine: str, timing: Timing, fraction: float) -> dict[str, Any]:
    line: dict[str, Any] = {
        "bench": f"ops/{name}",
        "case": case.name,
        "dtype": DTYPE_NAMES.get(case.dtype, str(case.dtype).removeprefix("torch.")),
        "engine": engine,
        "median_us": round(timing.median_us, 3),
        "p20_us": round(timing.p20_us, 3),
        "p80_us": round(timing.p80_us, 3),
        "bytes": case.num_bytes,
    }
    if case.num_flops:
        line["flops"] = case.num_flops
    if fraction:
        line["roof_fraction"] = round(fraction, 4)
    return line


def _row(line: dict[str, Any]) -> str:
    seconds = line["median_us"] * 1e-6
    columns = [
        f"{line['bench']:22} {line['case']:28} {line['dtype']:5} {line['engine']:14}",
        f"{line['median_us']:10.2f} us [{line['p20_us']:.2f}, {line['p80_us']:.2f}]",
        f"{line['bytes'] / seconds * 1e-9:8.1f} GB/s",
    ]
    if "flops" in line:
        columns.append(f"{line['flops'] / seconds * 1e-12:7.1f} TFLOP/s")
    if "roof_fraction" in line:
        columns.append(f"{line['roof_fraction']:6.1%} of roof")
    return " ".join(columns)


if __name__ == "__main__":
    import argparse

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*")
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--dtype", default="bf16", choices=sorted(DTYPES))
    parser.add_argument("--profile", type=Path, help="folder for torch-profiler traces")
    parser.add_argument("--log", type=Path, default=record.DEFAULT_FOLDER)
    main(**vars(parser.parse_args()))
