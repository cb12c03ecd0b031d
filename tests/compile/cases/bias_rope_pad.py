import torch

from lite_llama.ops.bias_rope_pad import kernel

CASES = {
    "8 sequences 32/8x128 bf16": lambda: _pad(32, 8, 128, torch.bfloat16),
    "unpad 8 sequences 32x128 bf16": lambda: kernel.unpad(
        _meta(8, 32, 256, 128, dtype=torch.bfloat16), _meta(9, dtype=torch.int32), 1024
    ),
}


def _meta(*shape: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _pad(q_heads: int, kv_heads: int, head_dim: int, dtype: torch.dtype) -> None:
    columns = (q_heads + 2 * kv_heads) * head_dim
    kernel.bias_rope_pad(
        _meta(1024, columns, dtype=dtype),
        _meta(columns, dtype=dtype),
        _meta(256, head_dim, dtype=torch.float32),
        _meta(9, dtype=torch.int32),
        256,
        q_heads,
    )
