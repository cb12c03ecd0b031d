from dataclasses import replace

import torch

from lite_llama.kernel_lib.gemv_launch import GemvLaunch, choose_gemv
from lite_llama.ops.norm_gate_up import kernel

CASES = {
    "8192x2048 bf16": lambda: _norm_gate_up(8192, 2048),
    "8192x2048 two tokens bf16": lambda: _norm_gate_up(8192, 2048, tokens=2),
    "8192x2048 eight tokens bf16": lambda: _norm_gate_up(8192, 2048, tokens=8),
    "1536x576 bf16": lambda: _norm_gate_up(1536, 576),
    "8192x2048 in groups bf16": lambda: _norm_gate_up(
        8192, 2048, launch=GemvLaunch(2, 2048, 4, groups=4)
    ),
    "8960x1536 in groups of three tiles bf16": lambda: _norm_gate_up(
        8960, 1536, launch=GemvLaunch(2, 512, 4, groups=4, prefetch=1.0)
    ),
}


def _norm_gate_up(
    inter: int, hidden: int, *, tokens: int = 1, launch: GemvLaunch | None = None
) -> None:
    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.bfloat16, device="meta")

    launch = replace(launch or choose_gemv(inter, hidden, tokens, pairs=True), overlap=0.0)
    kernel.norm_gate_up(
        empty(tokens, hidden), empty(hidden), empty(2 * inter, hidden), 1e-5, launch
    )
