import torch

from lite_llama.ops.kv_write import kernel

CASES = {
    "16 tokens 2x8 fp32": lambda: _write(16, 2, 8, torch.float32, torch.float32, None),
    "512 tokens 8x128 bf16": lambda: _write(512, 8, 128, torch.bfloat16, torch.bfloat16, None),
    "512 tokens 8x128 e5m2": lambda: _write(
        512, 8, 128, torch.bfloat16, torch.float8_e5m2, 57344.0
    ),
}


def _write(
    num_tokens: int,
    heads: int,
    dim: int,
    dtype: torch.dtype,
    cache_dtype: torch.dtype,
    limit: float | None,
) -> None:
    k = torch.empty(num_tokens, heads, dim, dtype=dtype, device="meta")
    cache = torch.empty(64, 16, heads, dim, dtype=cache_dtype, device="meta")
    slots = torch.empty(num_tokens, dtype=torch.int64, device="meta")
    kernel.kv_write(k, k, cache, cache, slots, limit)
