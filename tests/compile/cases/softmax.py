import torch

from lite_llama.ops.softmax import kernel

CASES = {
    "128x128 fp32": lambda: kernel.softmax(_x(128, 128, torch.float32)),
    "4096x4096 bf16": lambda: kernel.softmax(_x(4096, 4096, torch.bfloat16)),
    "4096x12672 bf16": lambda: kernel.softmax(_x(4096, 12672, torch.bfloat16)),
    "8x128256 fp32": lambda: kernel.softmax(_x(8, 128256, torch.float32)),
}


def _x(num_rows: int, n: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(num_rows, n, dtype=dtype, device="meta")
