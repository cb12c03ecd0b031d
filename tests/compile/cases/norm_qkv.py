from dataclasses import replace

import torch

from lite_llama.kernel_lib.gemv_launch import choose_gemv
from lite_llama.ops.norm_qkv import kernel

CASES = {
    "32/8 heads of 64 bf16": lambda: _norm_qkv(32, 8, 64, 2048),
    "32/8 heads of 64 two tokens bf16": lambda: _norm_qkv(32, 8, 64, 2048, tokens=2),
    "32/8 heads of 64 eight tokens bf16": lambda: _norm_qkv(32, 8, 64, 2048, tokens=8),
    "9/3 heads of 64 with bias bf16": lambda: _norm_qkv(9, 3, 64, 576, biased=True),
}


def _norm_qkv(
    num_q: int, num_kv: int, dim: int, hidden: int, *, tokens: int = 1, biased: bool = False
) -> None:
    def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    rows = (num_q + 2 * num_kv) * dim
    cache = empty(8, 16, num_kv, dim)
    kernel.norm_qkv(
        empty(tokens, hidden),
        empty(hidden),
        empty(rows, hidden),
        empty(rows) if biased else None,
        1e-5,
        cos_sin=empty(64, dim, dtype=torch.float32),
        positions=empty(tokens, dtype=torch.int64),
        k_cache=cache,
        v_cache=cache,
        slot_mapping=empty(tokens, dtype=torch.int64),
        launch=replace(choose_gemv(rows // 2, hidden, tokens, pairs=True), overlap=0.0),
    )
