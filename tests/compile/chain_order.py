"""Print, as JSON, how the chain's kernels order their loads around the wait, on sm_90.

`python -m tests.compile.chain_order`: {case: [[weight loads, other loads] before the wait, after]}.
Weights, and nothing else, are prefetched into L2, or loaded with the evict-first hint, by which the
disassembly tells them apart. (After the wait, tensor cores get both by asynchronous copies.)
"""

import json
import re
import subprocess
import tempfile
from pathlib import Path

import triton

from tests.compile.record import all_cases, caught_launches, compile_launch

OPERATORS = ("linear_add", "norm_linear", "norm_gate_up", "norm_qkv")


def main() -> None:
    found = {}
    for name, call in all_cases().items():
        if name.startswith(OPERATORS):
            with caught_launches("sm_90") as launches:
                call()
            [(function, args, kwargs)] = launches
            kernel = compile_launch(function, args, kwargs, "sm_90")
            before, after = disassemble(kernel.asm["cubin"]).split("ACQBULK")
            found[name] = [count_loads(before), count_loads(after)]
    print(json.dumps(found))


def disassemble(cubin: bytes) -> str:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "-c", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def count_loads(text: str) -> tuple[int, int]:
    """(prefetches and evict-first loads, other loads) from global memory."""
    loads = re.findall(r"LDG(?:STS)?\.E\S*|CCTL\.E\.PF2", text)
    weights = sum(".EF" in load or "PF2" in load for load in loads)
    return weights, len(loads) - weights


if __name__ == "__main__":
    main()
