"""norm_qkv in Triton: a program owns a few rotary pairs, rows j and j + head_dim / 2 of a head."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lite_llama.kernel_lib.decode_gemv import can_overlap, choose_gemv, pair_products


@triton.jit
def norm_qkv_kernel(
    x_ptr,
    norm_ptr,
    w_ptr,
    bias_ptr,
    cos_sin_ptr,
    positions_ptr,
    slots_ptr,
    q_ptr,
    k_ptr,
    v_ptr,
    eps,
    NUM_Q: tl.constexpr,
    NUM_KV: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    K: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Grid ((NUM_Q + 2 NUM_KV) HEAD_DIM / 2 / BLOCK_N,)."""
    HALF: tl.constexpr = HEAD_DIM // 2
    NUM_PAIRS: tl.constexpr = (NUM_Q + 2 * NUM_KV) * HALF
    element = w_ptr.dtype.element_ty
    pairs = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    pair_ok = pairs < NUM_PAIRS
    head = pairs // HALF
    j = pairs % HALF
    first_rows = head * HEAD_DIM + j
    a, b = pair_products(
        x_ptr, norm_ptr, w_ptr, first_rows, first_rows + HALF, pair_ok, eps,
        K, BLOCK_N, BLOCK_K, NUM_PAIRS % BLOCK_N == 0, OVERLAP,
    )  # fmt: skip
    if BIAS:
        a += tl.load(bias_ptr + first_rows, mask=pair_ok, other=0.0).to(tl.float32)
        b += tl.load(bias_ptr + first_rows + HALF, mask=pair_ok, other=0.0).to(tl.float32)
    a = a.to(element).to(tl.float32)
    b = b.to(element).to(tl.float32)
    # The position is read after the wait too: an earlier kernel of the chain may advance it.
    angle_ptr = cos_sin_ptr + tl.load(positions_ptr) * HEAD_DIM + j
    is_value = head >= NUM_Q + NUM_KV
    cos = tl.where(is_value, 1.0, tl.load(angle_ptr))
    sin = tl.where(is_value, 0.0, tl.load(angle_ptr + HALF))
    first = (a * cos - b * sin).to(element)
    second = (b * cos + a * sin).to(element)
    slot = tl.load(slots_ptr).to(tl.int64)
    is_query = pair_ok & (head < NUM_Q)
    is_key = pair_ok & (head >= NUM_Q) & (head < NUM_Q + NUM_KV) & (slot >= 0)
    is_value = pair_ok & is_value & (slot >= 0)
    tl.store(q_ptr + first_rows, first, mask=is_query)
    tl.store(q_ptr + first_rows + HALF, second, mask=is_query)
    key_at = slot * (NUM_KV * HEAD_DIM) + first_rows - NUM_Q * HEAD_DIM
    tl.store(k_ptr + key_at, first, mask=is_key)
    tl.store(k_ptr + key_at + HALF, second, mask=is_key)
    value_at = key_at - NUM_KV * HEAD_DIM
    tl.store(v_ptr + value_at, first, mask=is_value)
    tl.store(v_ptr + value_at + HALF, second, mask=is_value)


def norm_qkv(
    x: Tensor,
    norm: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    *,
    cos_sin: Tensor,
    positions: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    overlap: bool,
) -> Tensor:
    num_rows, num_columns = weight.shape
    num_kv_heads, head_dim = k_cache.shape[2:]
    num_q_heads = num_rows // head_dim - 2 * num_kv_heads
    how = choose_gemv(num_rows // 2, num_columns)
    overlap = can_overlap(x, overlap=overlap)
    q = torch.empty((1, num_q_heads, head_dim), dtype=x.dtype, device=x.device)
    norm_qkv_kernel[(triton.cdiv(num_rows // 2, how.block_n),)](
        x,
        norm,
        weight,
        bias,
        cos_sin,
        positions,
        slot_mapping,
        q,
        k_cache,
        v_cache,
        eps,
        NUM_Q=num_q_heads,
        NUM_KV=num_kv_heads,
        HEAD_DIM=head_dim,
        K=num_columns,
        BIAS=bias is not None,
        BLOCK_N=how.block_n,
        BLOCK_K=how.block_k,
        OVERLAP=overlap,
        num_warps=how.num_warps,
        launch_pdl=overlap,
    )
    return q
