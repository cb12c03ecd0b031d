import torch

from lite_llama.ops.rope import kernel

CASES = {
    "512 tokens 4x4096 fp32": lambda: _rope(512, 4, 4, 4096, torch.float32),
    "512 tokens 32/8x64 bf16": lambda: _rope(512, 32, 8, 64, torch.bfloat16),
    "1 token 9/3x80 bf16": lambda: _rope(1, 9, 3, 80, torch.bfloat16),
}


def _rope(num_tokens: int, q_heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> None:
    q, k = (
        torch.empty(num_tokens, heads, head_dim, dtype=dtype, device="meta")
        for heads in (q_heads, kv_heads)
    )
    positions = torch.empty(num_tokens, dtype=torch.int64, device="meta")
    kernel.rope(q, k, torch.empty(8192, head_dim, device="meta"), positions)
