"""kv_write in Triton: one program a piece of a token's key and value."""

import triton
import triton.language as tl
from torch import Tensor

from lite_llama.kernel_lib.rows import ceil_div, next_power_of_2

# 128 threads with one 16-byte load of k and of v.
_BYTES_PER_PROGRAM = 128 * 16


@triton.jit
def _kv_write(
    k_ptr,
    v_ptr,
    k_cache_ptr,
    v_cache_ptr,
    slots_ptr,
    k_token_stride,
    v_token_stride,
    k_slot_stride,
    v_slot_stride,
    n,
    LIMIT: tl.constexpr,
    BLOCK: tl.constexpr,
):
    pieces = tl.cdiv(n, BLOCK)
    token = (tl.program_id(0) // pieces).to(tl.int64)
    columns = (tl.program_id(0) % pieces) * BLOCK + tl.arange(0, BLOCK)
    slot = tl.load(slots_ptr + token).to(tl.int64)
    # Padding is read too: loads that wait for the slot cost twice the latency.
    k = tl.load(k_ptr + token * k_token_stride + columns, mask=columns < n)
    v = tl.load(v_ptr + token * v_token_stride + columns, mask=columns < n)
    mask = (columns < n) & (slot >= 0)
    if LIMIT is not None:  # fp8 saturates
        k = tl.clamp(k.to(tl.float32), -LIMIT, LIMIT)
        v = tl.clamp(v.to(tl.float32), -LIMIT, LIMIT)
    k_at = k_cache_ptr + slot * k_slot_stride + columns
    v_at = v_cache_ptr + slot * v_slot_stride + columns
    tl.store(k_at, k.to(k_cache_ptr.dtype.element_ty), mask=mask)
    tl.store(v_at, v.to(v_cache_ptr.dtype.element_ty), mask=mask)


def kv_write(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    limit: float | None,
) -> None:
    """Store at least one token; `limit` is the largest value of a cache dtype that saturates."""
    k, v = _with_joined_heads(k), _with_joined_heads(v)
    num_tokens, n = k.shape
    itemsize = k.element_size()
    block = min(next_power_of_2(n), _BYTES_PER_PROGRAM // itemsize)
    _kv_write[(num_tokens * ceil_div(n, block),)](
        k,
        v,
        k_cache,
        v_cache,
        slot_mapping.contiguous(),
        k.stride(0),
        v.stride(0),
        k_cache.stride(1),
        v_cache.stride(1),
        n,
        LIMIT=limit,
        BLOCK=block,
        num_warps=max(1, min(4, block * itemsize // 512)),
    )


def _with_joined_heads(x: Tensor) -> Tensor:
    # [tokens, heads, head_dim] -> [tokens, heads · head_dim], a view unless heads lie apart.
    return x.flatten(1) if x.stride(2) == 1 else x.contiguous().flatten(1)
