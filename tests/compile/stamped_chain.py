"""Print, as JSON, what stamps add to the chain's kernels: `python -m tests.compile.stamped_chain`.

{case: {"clock": reads of the clock before and after the wait, "order": as in chain_order, "stored":
stores before the wait}}, compiled for sm_90 with the stamping functions in place.
"""

import importlib
import json

import torch

from lite_llama.bench.timeline import STAMPED_MODULES
from lite_llama.kernel_lib import stamps
from tests.compile.chain_order import disassemble, order
from tests.compile.record import all_cases, caught_launches, compile_launch

# What a step of one sequence launches.
CASES = (
    "linear_add: 2048x8192 bf16",
    "norm_gate_up: 8192x2048 bf16",
    "norm_linear: 128256x2048 bf16",
    "norm_qkv: 32/8 heads of 64 bf16",
    "norm_rope_write: 16/8 heads of 128 bf16",
    "attention_decode: 32/8 64 bf16 in the chain",
)


def main() -> None:
    stamps.take_stamps(map(importlib.import_module, STAMPED_MODULES), torch.device("cpu"))
    found = {}
    cases = all_cases()
    for name in CASES:
        with caught_launches("sm_90") as launches:
            cases[name]()
        function, args, kwargs = launches[0]
        kernel = compile_launch(function, args, kwargs, "sm_90")
        before, _, after = disassemble(kernel.asm["cubin"]).partition("ACQBULK")
        found[name] = {
            "clock": [part.count("GLOBALTIMERLO") for part in (before, after)],
            "order": order(kernel),
            "stored": before.count("STG"),
        }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
