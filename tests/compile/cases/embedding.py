import torch

from lite_llama.ops.embedding import kernel

CASES = {
    "50 of 512x4096 fp32": lambda: _embedding(50, 512, 4096, torch.float32),
    "2048 of 128256x2048 bf16": lambda: _embedding(2048, 128256, 2048, torch.bfloat16),
}


def _embedding(count: int, num_rows: int, n: int, dtype: torch.dtype) -> None:
    indices = torch.empty(count, dtype=torch.int64, device="meta")
    kernel.embedding(indices, torch.empty(num_rows, n, dtype=dtype, device="meta"))
