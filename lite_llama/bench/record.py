"""The log of measurements: bench/log/<gpu>.jsonl, one JSON object a line, only ever appended to."""

import json
import platform
import re
import subprocess
import uuid
from dataclasses import asdict, dataclass, field
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from lite_llama.kernel_lib.gpu import slug

DEFAULT_FOLDER = Path("bench/log")

Line = dict[str, Any]


@dataclass(frozen=True)
class Run:
    """What all lines of one run share."""

    gpu: str
    driver: str
    torch: str
    triton: str
    commit: str
    run: str = field(default_factory=lambda: uuid.uuid4().hex[:12])

    @property
    def slug(self) -> str:
        """The GPU's name as a file name: "NVIDIA H200" -> "nvidia-h200"."""
        return slug(self.gpu)


def describe_run(device: torch.device) -> Run:
    """Versions, commit and device of a run that starts now."""
    on_gpu = device.type == "cuda"
    return Run(
        gpu=torch.cuda.get_device_name(device) if on_gpu else f"cpu {platform.machine()}",
        driver=_output(
            "nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"
        )
        if on_gpu
        else "",
        torch=torch.__version__,
        triton=_version("triton"),
        commit=_output("git", "describe", "--always", "--dirty"),
    )


def append(run: Run, lines: list[Line], folder: Path = DEFAULT_FOLDER) -> Path:
    """Append `lines`, each with the run's fields, to the log of the run's GPU."""
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{run.slug}.jsonl"
    with path.open("a") as file:
        for line in lines:
            file.write(json.dumps(line | asdict(run)) + "\n")
    return path


def read(path: Path) -> list[Line]:
    """Every line of a log."""
    return [json.loads(line) for line in path.read_text().splitlines() if line]


def case_of(line: Line) -> str:
    """What a line is of: its case, less what is not a case of its own.

    That is which kernel ran, in brackets, and at the end how many tokens were generated.
    """
    return re.sub(r" g\d+$", "", str(line["case"]).partition(" (")[0])


def overlaps(a: Line, b: Line) -> bool:
    """Whether the spreads (p20 to p80) of two timings touch: then neither is faster."""
    return bool(a["p20_us"] <= b["p80_us"] and b["p20_us"] <= a["p80_us"])


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return ""


def _output(*command: str) -> str:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=10)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.strip()
