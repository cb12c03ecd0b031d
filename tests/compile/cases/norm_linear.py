from dataclasses import replace

import torch

from lite_llama.kernel_lib.gemv_launch import choose_gemv
from lite_llama.ops.norm_linear import kernel

CASES = {
    "128256x2048 bf16": lambda: _norm_linear(128256, 2048),
    "128256x2048 eight tokens bf16": lambda: _norm_linear(128256, 2048, tokens=8),
    "49152x576 bf16": lambda: _norm_linear(49152, 576),
}


def _norm_linear(rows: int, columns: int, *, tokens: int = 1) -> None:
    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.bfloat16, device="meta")

    launch = replace(choose_gemv(rows, columns, tokens), overlap=0.0)
    kernel.norm_linear(
        empty(tokens, columns), empty(columns), empty(rows, columns), 1e-5, None, launch
    )
