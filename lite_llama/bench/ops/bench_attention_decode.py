"""attention_decode: bandwidth of reading the cache, against torch's fused attention."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lite_llama.bench.harness import Case
from lite_llama.ops import attention_decode

_HEADS = (32, 8)
_BLOCK_SIZE = 16
_MAX_BYTES = 2**33


def cases(device: torch.device, dtype: torch.dtype) -> list[Case]:
    if device.type != "cuda":
        return [_case(device, dtype, 2, 128, 64)]
    return [
        case
        for head_dim in (64, 128)
        for batch in (1, 8, 64, 256)
        for kv_len in (128, 1024, 8192, 32768, 131072)
        if (case := _case(device, dtype, batch, kv_len, head_dim)).num_bytes <= _MAX_BYTES
    ]


def _case(device: torch.device, dtype: torch.dtype, batch: int, kv_len: int, head_dim: int) -> Case:
    num_q_heads, num_kv_heads = _HEADS
    blocks_per_seq = kv_len // _BLOCK_SIZE

    def make_inputs() -> tuple[Tensor, ...]:
        q = torch.randn(batch, num_q_heads, head_dim, device=device, dtype=dtype)
        shape = (batch * blocks_per_seq, _BLOCK_SIZE, num_kv_heads, head_dim)
        k, v = (torch.randn(shape, device=device, dtype=dtype) for _ in range(2))
        numbers = torch.arange(batch * blocks_per_seq, dtype=torch.int32, device=device)
        lengths = torch.full((batch,), kv_len, dtype=torch.int32, device=device)
        return q, k, v, numbers.view(batch, blocks_per_seq), lengths

    def ours(q: Tensor, k: Tensor, v: Tensor, block_table: Tensor, seq_lens: Tensor) -> Tensor:
        return attention_decode(q, k, v, block_table=block_table, seq_lens=seq_lens)

    def by_torch(q: Tensor, k: Tensor, v: Tensor, *_: Tensor) -> Tensor:
        # The blocks happen to lie in order, so torch may read the cache as one tensor.
        keys, values = (
            x.view(batch, kv_len, num_kv_heads, head_dim).transpose(1, 2) for x in (k, v)
        )
        out = F.scaled_dot_product_attention(q.unsqueeze(2), keys, values, enable_gqa=True)
        return out.squeeze(2)

    return Case(
        name=f"b{batch} h{num_q_heads}/{num_kv_heads} d{head_dim} kv{kv_len}",
        dtype=dtype,
        make_inputs=make_inputs,
        contenders={"torch": by_torch, "lite_llama": ours},
        num_bytes=(2 * kv_len * num_kv_heads + 2 * num_q_heads) * batch * head_dim * dtype.itemsize,
        num_flops=4 * batch * num_q_heads * head_dim * kv_len,
    )
