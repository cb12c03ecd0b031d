import torch

from lite_llama.ops.layer_norm import kernel

CASES = {
    "128x128 fp32": lambda: _norm(128, 128, torch.float32),
    "4096x4096 bf16": lambda: _norm(4096, 4096, torch.bfloat16),
    "4096x15872 bf16": lambda: _norm(4096, 15872, torch.bfloat16),
}


def _norm(num_rows: int, n: int, dtype: torch.dtype) -> None:
    x, weight, bias = (
        torch.empty(shape, dtype=dtype, device="meta") for shape in ((num_rows, n), n, n)
    )
    kernel.layer_norm(x, weight, bias, 1e-5)
