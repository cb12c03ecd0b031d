import torch

from lite_llama.ops.norm_qkv import kernel

CASES = {
    "32/8 heads of 64 bf16": lambda: _norm_qkv(32, 8, 64, 2048),
    "9/3 heads of 64 with bias bf16": lambda: _norm_qkv(9, 3, 64, 576, biased=True),
}


def _norm_qkv(num_q: int, num_kv: int, dim: int, hidden: int, *, biased: bool = False) -> None:
    def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    rows = (num_q + 2 * num_kv) * dim
    cache = empty(8, 16, num_kv, dim)
    kernel.norm_qkv(
        empty(1, hidden),
        empty(hidden),
        empty(rows, hidden),
        empty(rows) if biased else None,
        1e-5,
        cos_sin=empty(64, dim, dtype=torch.float32),
        positions=empty(1, dtype=torch.int64),
        k_cache=cache,
        v_cache=cache,
        slot_mapping=empty(1, dtype=torch.int64),
        overlap=True,
    )
