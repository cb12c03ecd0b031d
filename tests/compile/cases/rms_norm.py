import torch

from lite_llama.ops.rms_norm import kernel

CASES = {
    "1x4 fp32": lambda: _norm(1, 4, torch.float32),
    "4096x4096 bf16": lambda: _norm(4096, 4096, torch.bfloat16),
    "4096x16384 fp32": lambda: _norm(4096, 16384, torch.float32),
    "add 64x2048 bf16": lambda: _add_norm(64, 2048, torch.bfloat16),
    "add 4096x15872 bf16": lambda: _add_norm(4096, 15872, torch.bfloat16),
}


def _meta(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _norm(num_rows: int, n: int, dtype: torch.dtype) -> None:
    kernel.rms_norm(_meta(num_rows, n, dtype=dtype), _meta(n, dtype=dtype), 1e-5)


def _add_norm(num_rows: int, n: int, dtype: torch.dtype) -> None:
    x = _meta(num_rows, n, dtype=dtype)
    kernel.add_rms_norm(x, x, _meta(n, dtype=dtype), 1e-5)
