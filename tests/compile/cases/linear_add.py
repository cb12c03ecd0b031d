import torch

from lite_llama.ops.linear_add import kernel

CASES = {
    "2048x8192 bf16": lambda: _linear_add(2048, 8192),
    "576x1536 with bias bf16": lambda: _linear_add(576, 1536, biased=True),
}


def _linear_add(rows: int, columns: int, *, biased: bool = False) -> None:
    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.bfloat16, device="meta")

    bias = empty(rows) if biased else None
    kernel.linear_add(empty(1, columns), empty(rows, columns), empty(1, rows), bias, overlap=True)
