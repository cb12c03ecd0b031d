"""repeat_kv in Triton: a program reads some heads of a token once and stores every copy."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lite_llama.kernel_lib.rows import ceil_div, next_power_of_2

# 128 threads with a 16-byte load each; each is stored q_per_kv times.
_BYTES_PER_PROGRAM = 128 * 16


@triton.jit
def _repeat_kv(
    x_ptr,
    out_ptr,
    token_stride,
    head_stride,
    num_heads,
    head_dim,
    Q_PER_KV: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    pieces = tl.cdiv(num_heads, BLOCK_HEADS)
    token = (tl.program_id(0) // pieces).to(tl.int64)
    heads = (tl.program_id(0) % pieces) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)[:, None]
    columns = tl.arange(0, BLOCK_DIM)[None, :]
    mask = (heads < num_heads) & (columns < head_dim)
    x_at = x_ptr + token * token_stride + heads.to(tl.int64) * head_stride + columns
    x = tl.load(x_at, mask=mask)
    out_at = out_ptr + (token * num_heads + heads) * Q_PER_KV * head_dim + columns
    for copy in tl.static_range(Q_PER_KV):
        tl.store(out_at + copy * head_dim, x, mask=mask)


def repeat_kv(x: Tensor, q_per_kv: int) -> Tensor:
    """repeat_kv of x with at least one element."""
    x = x if x.stride(2) == 1 else x.contiguous()
    num_tokens, num_heads, head_dim = x.shape
    out = torch.empty(num_tokens, num_heads * q_per_kv, head_dim, dtype=x.dtype, device=x.device)
    block_dim = next_power_of_2(head_dim)
    fitting = max(1, _BYTES_PER_PROGRAM // (block_dim * x.element_size()))
    block_heads = min(next_power_of_2(num_heads), fitting)
    _repeat_kv[(num_tokens * ceil_div(num_heads, block_heads),)](
        x,
        out,
        x.stride(0),
        x.stride(1),
        num_heads,
        head_dim,
        Q_PER_KV=q_per_kv,
        BLOCK_HEADS=block_heads,
        BLOCK_DIM=block_dim,
        num_warps=4,
    )
    return out
