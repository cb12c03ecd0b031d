import torch

from lite_llama.ops.norm_rope_write import kernel

CASES = {
    "16/8 heads of 128 bf16": lambda: _norm_rope_write(16, 8, 128),
    "9/3 heads of 80 bf16": lambda: _norm_rope_write(9, 3, 80),
}


def _norm_rope_write(num_q: int, num_kv: int, dim: int) -> None:
    def empty(*shape: int, dtype: torch.dtype = torch.bfloat16) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    cache = empty(8, 16, num_kv, dim)
    kernel.norm_rope_write(
        empty(1, (num_q + 2 * num_kv) * dim, dtype=torch.float32),
        empty(dim),
        empty(dim),
        1e-6,
        cos_sin=empty(64, dim, dtype=torch.float32),
        positions=empty(1, dtype=torch.int64),
        k_cache=cache,
        v_cache=cache,
        slot_mapping=empty(1, dtype=torch.int64),
        overlap=True,
    )
