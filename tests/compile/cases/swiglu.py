import torch

from lite_llama.ops.swiglu import kernel

CASES = {
    "512x4096 fp32": lambda: _swiglu(512, 4096, torch.float32),
    "8x8192 fused bf16": lambda: _swiglu(8, 8192, torch.bfloat16),
}


def _swiglu(num_rows: int, n: int, dtype: torch.dtype) -> None:
    fused = torch.empty(num_rows, 2 * n, dtype=dtype, device="meta")
    kernel.swiglu(*fused.chunk(2, dim=-1))
