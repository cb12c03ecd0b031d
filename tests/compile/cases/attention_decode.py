import torch

from lite_llama.ops.attention_decode import kernel


def _decode(
    heads: tuple[int, int],
    head_dim: int,
    dtype: torch.dtype,
    *,
    block_size: int = 16,
    num_seqs: int = 8,
    overlap: float = -1.0,
) -> None:
    num_q_heads, num_kv_heads = heads
    cache = torch.empty(64, block_size, num_kv_heads, head_dim, dtype=dtype, device="meta")
    kernel.attention_decode(
        torch.empty(num_seqs, num_q_heads, head_dim, dtype=dtype, device="meta"),
        cache,
        torch.empty_like(cache),
        block_table=torch.empty(num_seqs, 8192 // block_size, dtype=torch.int32, device="meta"),
        seq_lens=torch.empty(num_seqs, dtype=torch.int32, device="meta"),
        scale=head_dim**-0.5,
        window=None,
        sinks=None,
        overlap=overlap,
    )


CASES = {
    "32/8 64 bf16": lambda: _decode((32, 8), 64, torch.bfloat16),
    "32/8 64 bf16 one sequence": lambda: _decode((32, 8), 64, torch.bfloat16, num_seqs=1),
    "32/8 64 bf16 in the chain": lambda: _decode((32, 8), 64, torch.bfloat16, overlap=0.0),
    "32/8 128 bf16": lambda: _decode((32, 8), 128, torch.bfloat16),
    "32/8 128 bf16 blocks of 256": lambda: _decode((32, 8), 128, torch.bfloat16, block_size=256),
    "12/2 128 bf16": lambda: _decode((12, 2), 128, torch.bfloat16),
    "16/16 80 fp16": lambda: _decode((16, 16), 80, torch.float16),
    "9/3 64 fp32": lambda: _decode((9, 3), 64, torch.float32),
}
