from dataclasses import replace

import torch

from lite_llama.kernel_lib.gemv_launch import GemvLaunch, choose_gemv
from lite_llama.ops.linear_add import kernel

CASES = {
    "2048x8192 bf16": lambda: _linear_add(2048, 8192),
    "2048x8192 two tokens bf16": lambda: _linear_add(2048, 8192, tokens=2),
    "2048x8192 eight tokens bf16": lambda: _linear_add(2048, 8192, tokens=8),
    "576x1536 with bias bf16": lambda: _linear_add(576, 1536, biased=True),
    "2048x8192 in groups bf16": lambda: _linear_add(
        2048, 8192, biased=True, launch=GemvLaunch(1, 8192, 8, groups=4)
    ),
}


def _linear_add(
    rows: int,
    columns: int,
    *,
    tokens: int = 1,
    biased: bool = False,
    launch: GemvLaunch | None = None,
) -> None:
    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.bfloat16, device="meta")

    bias = empty(rows) if biased else None
    launch = replace(launch or choose_gemv(rows, columns, tokens), overlap=0.0)
    kernel.linear_add(
        empty(tokens, columns), empty(rows, columns), empty(tokens, rows), bias, launch
    )
