"""norm_qkv in Triton: a program owns a few rotary pairs, rows j and j + head_dim / 2 of a head."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lite_llama.kernel_lib.decode_gemv import (
    load_early,
    num_columns,
    pair_rows,
    products,
    split_pairs,
    wait,
)
from lite_llama.kernel_lib.decode_ring import run_ring
from lite_llama.kernel_lib.decode_rotation import store_rotated
from lite_llama.kernel_lib.gemv_launch import GemvLaunch, choose_gemv
from lite_llama.kernel_lib.gpu import gpu_spec


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
    M: tl.constexpr,
    NUM_Q: tl.constexpr,
    NUM_KV: tl.constexpr,
    HEAD_DIM: tl.constexpr,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    OVERLAP: tl.constexpr,
    TRIGGER: tl.constexpr,
    PRELOAD: tl.constexpr,
    PREFETCH: tl.constexpr,
):
    """Grid ((NUM_Q + 2 NUM_KV) HEAD_DIM / 2 / BLOCK_N,)."""
    HALF: tl.constexpr = HEAD_DIM // 2
    NUM_PAIRS: tl.constexpr = (NUM_Q + 2 * NUM_KV) * HALF
    element = w_ptr.dtype.element_ty
    pairs, which = pair_rows(BLOCK_N, 1, NUM_PAIRS)
    rows = pairs // HALF * HEAD_DIM + pairs % HALF + which * HALF
    early = load_early(
        norm_ptr, w_ptr, rows,
        K, BLOCK_N, BLOCK_K, STAGES, 1, OVERLAP, TRIGGER, PRELOAD, PREFETCH,
    )  # fmt: skip
    if bias_ptr is not None:
        bias = tl.load(bias_ptr + rows)
    own_pairs = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    head = (own_pairs // HALF)[:, None]
    j = (own_pairs % HALF)[:, None]
    first_rows = head * HEAD_DIM + j
    tokens = tl.arange(0, num_columns(M, STAGES))[None, :]
    real = (own_pairs < NUM_PAIRS)[:, None] & (tokens < M)
    slot = tl.load(slots_ptr + tokens, mask=tokens < M, other=-1).to(tl.int64)
    position = tl.load(positions_ptr + tokens, mask=tokens < M, other=0)
    turned = real & (head < NUM_Q + NUM_KV)
    angle_ptr = cos_sin_ptr + position * HEAD_DIM + j
    cos = tl.load(angle_ptr, mask=turned, other=1.0)
    sin = tl.load(angle_ptr + HALF, mask=turned, other=0.0)
    wait(OVERLAP)
    found = products(
        x_ptr, norm_ptr, early, eps, M, K, BLOCK_N, BLOCK_K, STAGES, 1, OVERLAP, TRIGGER
    )
    y = found[0]
    if bias_ptr is not None:
        y += bias.to(tl.float32)[:, None]
    a, b = split_pairs(y.to(element).to(tl.float32))
    store_rotated(
        q_ptr, k_ptr, v_ptr, a, b, cos, sin, tokens, head, first_rows, slot, real, turned,
        NUM_Q, NUM_KV, HALF, element,
    )  # fmt: skip


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
    launch: GemvLaunch | None,
) -> Tensor:
    num_rows, num_columns = weight.shape
    num_kv_heads, head_dim = k_cache.shape[2:]
    num_q_heads = num_rows // head_dim - 2 * num_kv_heads
    how = launch or choose_gemv(num_rows // 2, num_columns, len(x), pairs=True)
    q = torch.empty((len(x), num_q_heads, head_dim), dtype=x.dtype, device=x.device)
    if how.is_ring(num_columns, weight.dtype, gpu_spec(x.device)):
        run_ring(
            x, weight, q, how, norm=norm, eps=eps, bias=bias, span=head_dim // 2,
            rotation=(cos_sin, positions, slot_mapping), caches=(k_cache, v_cache),
        )  # fmt: skip
        return q
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
        M=len(x),
        NUM_Q=num_q_heads,
        NUM_KV=num_kv_heads,
        HEAD_DIM=head_dim,
        K=num_columns,
        **how.constants(num_columns, gpu_spec(x.device)),
    )
    return q
