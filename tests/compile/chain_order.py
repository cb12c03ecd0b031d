"""Print, as JSON, what the chain's kernels read before and after their wait, compiled for sm_90.

`python -m tests.compile.chain_order`: {case: {"before": arguments, "after": arguments, "loads":
[loads before the wait in the machine code, in PTX]}}. Which argument a load reads follows from the
PTX: the pointers that its address is made of. That no load moves over the wait after that, from the
machine code.
"""

import json
import re
import subprocess
import tempfile
from collections import defaultdict
from pathlib import Path
from typing import Any

import triton

from tests.compile.record import all_cases, caught_launches, compile_launch

OPERATORS = ("linear_add", "norm_linear", "norm_gate_up", "norm_qkv", "norm_rope_write")
CHAINED_ATTENTION = "attention_decode: 32/8 64 bf16 in the chain"

_READ = re.compile(r"\b(?:ld\.global|prefetch\.global|cp\.async\.c[ag]\.)")


def main() -> None:
    found = {}
    for name, call in all_cases().items():
        if name.startswith(OPERATORS) or name == CHAINED_ATTENTION:
            with caught_launches("sm_90") as launches:
                call()
            [(function, args, kwargs)] = launches
            found[name] = order(compile_launch(function, args, kwargs, "sm_90"))
    print(json.dumps(found))


def order(kernel: Any) -> dict[str, Any]:
    """What a compiled kernel reads before and after its wait; see the module."""
    before, after = reads(kernel)
    early, _, _ = disassemble(kernel.asm["cubin"]).partition("ACQBULK")
    num_early = len(re.findall(r"LDG(?:STS)?\.E\S*|CCTL\.E\.PF2", early))
    return {
        "before": sorted(set().union(*before)),
        "after": sorted(set().union(*after)),
        "loads": [num_early, len(before)],
    }


def reads(kernel: Any) -> tuple[list[set[str]], list[set[str]]]:
    """The arguments in the address of each read of global memory, before and after the wait."""
    arguments = [name for name, kind in kernel.src.signature.items() if kind != "constexpr"]
    lines = [line.strip() for line in kernel.asm["ptx"].splitlines()]
    origins: dict[str, set[str]] = defaultdict(set)
    size = -1
    while size != sum(map(len, origins.values())):  # until nothing is added: loops go backwards
        size = sum(map(len, origins.values()))
        for line in lines:
            registers = re.findall(r"%rd?\d+", line)
            parameter = re.match(r"ld\.param\S*\s+(%rd?\d+), \[\w+_param_(\d+)\]", line)
            if parameter and int(parameter[2]) < len(arguments):
                origins[parameter[1]].add(arguments[int(parameter[2])])
            elif registers and not re.search(r"\b(?:ld|st|atom|cp)\.", line):
                origins[registers[0]].update(*(origins[other] for other in registers[1:]))
    parts: tuple[list[set[str]], list[set[str]]] = ([], [])
    waited = False
    pointers = {name for name, kind in kernel.src.signature.items() if kind.startswith("*")}
    for line in lines:
        waited |= line.startswith("griddepcontrol.wait")
        if _READ.search(line):
            address = re.findall(r"\[\s*(%rd\d+)", line)[-1]
            parts[waited].append(origins[address] & pointers)
    return parts


def disassemble(cubin: bytes) -> str:
    tool = Path(triton.__file__).parent / "backends/nvidia/bin/nvdisasm"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(tool), "-c", file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main()
