"""norm_rope_write in Triton: a program owns one head of one token."""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from lite_llama.kernel_lib.gpu import gpu_spec


@triton.jit
def norm_rope_write_kernel(
    qkv_ptr,
    q_norm_ptr,
    k_norm_ptr,
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
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Grid (NUM_Q + 2 NUM_KV, tokens); halves of a head lie in two vectors."""
    HALF: tl.constexpr = HEAD_DIM // 2
    element = q_ptr.dtype.element_ty
    head, token = tl.program_id(0), tl.program_id(1)
    j = tl.arange(0, BLOCK)
    inside = j < HALF
    is_query = head < NUM_Q
    is_value = head >= NUM_Q + NUM_KV
    norm_ptr = q_norm_ptr if is_query else k_norm_ptr
    if OVERLAP:
        gdc_launch_dependents()
    first_norm = tl.load(norm_ptr + j, mask=inside & ~is_value, other=1.0).to(tl.float32)
    second_norm = tl.load(norm_ptr + HALF + j, mask=inside & ~is_value, other=1.0).to(tl.float32)
    # Read before the wait: no kernel of a step writes them.
    slot = tl.load(slots_ptr + token).to(tl.int64)
    angle_ptr = cos_sin_ptr + tl.load(positions_ptr + token) * HEAD_DIM + j
    cos = tl.load(angle_ptr, mask=inside, other=1.0)
    sin = tl.load(angle_ptr + HALF, mask=inside, other=0.0)
    if OVERLAP:
        gdc_wait()
    head_ptr = qkv_ptr + (token * (NUM_Q + 2 * NUM_KV) + head) * HEAD_DIM + j
    first = tl.load(head_ptr, mask=inside, other=0.0)
    second = tl.load(head_ptr + HALF, mask=inside, other=0.0)
    if not is_value:
        scale = tl.rsqrt(tl.sum(first * first + second * second) / HEAD_DIM + eps)
        a = (first * scale * first_norm).to(element).to(tl.float32)
        b = (second * scale * second_norm).to(element).to(tl.float32)
        # Which of two products is rounded must not depend on what else is in the kernel.
        first = tl.fma(a, cos, -b * sin)
        second = tl.fma(b, cos, a * sin)
    if is_query:
        out_ptr = q_ptr + (token * NUM_Q + head) * HEAD_DIM
    else:
        inside = inside & (slot >= 0)
        if is_value:
            out_ptr = v_ptr + (slot * NUM_KV + head - NUM_Q - NUM_KV) * HEAD_DIM
        else:
            out_ptr = k_ptr + (slot * NUM_KV + head - NUM_Q) * HEAD_DIM
    tl.store(out_ptr + j, first.to(element), mask=inside)
    tl.store(out_ptr + HALF + j, second.to(element), mask=inside)


def norm_rope_write(
    qkv: Tensor,
    q_norm: Tensor,
    k_norm: Tensor,
    eps: float,
    *,
    cos_sin: Tensor,
    positions: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    overlap: bool,
) -> Tensor:
    num_kv_heads, head_dim = k_cache.shape[2:]
    num_heads = qkv.shape[1] // head_dim
    num_q_heads = num_heads - 2 * num_kv_heads
    overlap = overlap and gpu_spec(qkv.device).has_pdl
    q = torch.empty((len(qkv), num_q_heads, head_dim), dtype=q_norm.dtype, device=qkv.device)
    norm_rope_write_kernel[(num_heads, len(qkv))](
        qkv,
        q_norm,
        k_norm,
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
        BLOCK=triton.next_power_of_2(head_dim // 2),
        OVERLAP=overlap,
        num_warps=1,
        launch_pdl=overlap,
    )
    return q
