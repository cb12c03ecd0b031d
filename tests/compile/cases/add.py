import torch

from lite_llama.ops.add import kernel

CASES = {
    "512x4096 fp32": lambda: kernel.add(_x(torch.float32), _x(torch.float32)),
    "512x4096 bf16": lambda: kernel.add(_x(torch.bfloat16), _x(torch.bfloat16)),
}


def _x(dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(512, 4096, dtype=dtype, device="meta")
