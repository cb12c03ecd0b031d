import torch

from lite_llama.ops.attention_prefill import kernel

BF16, FP32 = torch.bfloat16, torch.float32


def _prefill(
    head_dim: int, dtype: torch.dtype, *, block_size: int = 0, q_len: int = 4096, **mask: object
) -> None:
    def new(*shape: int) -> torch.Tensor:
        return torch.empty(*shape, dtype=dtype, device="meta")

    k = new(64, block_size, 8, head_dim) if block_size else new(4096, 8, head_dim)
    integers = torch.empty(3, dtype=torch.int32, device="meta")
    q = new(q_len, 32, head_dim)
    kernel.attention_prefill(
        q,
        k,
        torch.empty_like(k),
        cu_seqlens_q=integers,
        seq_lens=integers[1:],
        max_q_len=q_len,
        block_table=torch.empty(2, 32, dtype=torch.int32, device="meta") if block_size else None,
        scale=head_dim**-0.5,
        causal=mask.get("causal", True),
        window=mask.get("window"),
        sinks=new(32) if "sinks" in mask else None,
        out=torch.empty_like(q),
    )


CASES = {
    "dense 64 bf16": lambda: _prefill(64, BF16),
    "dense 64 bf16 all": lambda: _prefill(64, BF16, causal=False),
    "dense 128 bf16": lambda: _prefill(128, BF16),
    "dense 128 bf16 all": lambda: _prefill(128, BF16, causal=False),
    "dense 128 bf16 few": lambda: _prefill(128, BF16, q_len=256),
    "dense 80 fp16": lambda: _prefill(80, torch.float16),
    "dense 64 fp32": lambda: _prefill(64, FP32),
    "blocks of 16 64 bf16": lambda: _prefill(64, BF16, block_size=16),
    "blocks of 16 128 bf16": lambda: _prefill(128, BF16, block_size=16),
    "blocks of 16 128 bf16 few": lambda: _prefill(128, BF16, block_size=16, q_len=48),
    "blocks of 256 128 bf16": lambda: _prefill(128, BF16, block_size=256),
    "blocks of 256 128 bf16 few": lambda: _prefill(128, BF16, block_size=256, q_len=48),
    "window and sinks 64 bf16": lambda: _prefill(64, BF16, block_size=16, window=128, sinks=True),
}
