"""norm_qkv on tensor cores, in Gluon: rotary pairs lie side by side in the tile."""

import triton.experimental.gluon.language as gl
from triton.experimental import gluon

from lite_llama.kernel_lib.decode_mma import NUM_TOKENS, products, weight_layout


@gluon.jit
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
    M: gl.constexpr,
    NUM_Q: gl.constexpr,
    NUM_KV: gl.constexpr,
    HEAD_DIM: gl.constexpr,
    K: gl.constexpr,
    BLOCK_N: gl.constexpr,
    BLOCK_K: gl.constexpr,
    STAGES: gl.constexpr,
    OVERLAP: gl.constexpr,
    TRIGGER: gl.constexpr,
    PRELOAD: gl.constexpr,
    PREFETCH: gl.constexpr,
):
    """Grid ((NUM_Q + 2 NUM_KV) HEAD_DIM / 2 / BLOCK_N,)."""
    HALF: gl.constexpr = HEAD_DIM // 2
    NUM_PAIRS: gl.constexpr = (NUM_Q + 2 * NUM_KV) * HALF
    element = w_ptr.dtype.element_ty
    w_layout: gl.constexpr = gl.SliceLayout(0, weight_layout(gl.num_warps()))
    places = gl.arange(0, 2 * BLOCK_N, w_layout)
    pairs = gl.program_id(0) * BLOCK_N + places // 2
    pairs = gl.where(pairs < NUM_PAIRS, pairs, 0)
    rows = pairs // HALF * HEAD_DIM + pairs % HALF + places % 2 * HALF
    y = products(
        x_ptr, norm_ptr, w_ptr, rows, eps,
        M, K, BLOCK_K, STAGES, OVERLAP, TRIGGER, PRELOAD, PREFETCH,
    )  # fmt: skip
    a, b = gl.split(y.reshape((NUM_TOKENS, BLOCK_N, 2)))
    layout: gl.constexpr = a.type.layout
    tokens = gl.arange(0, NUM_TOKENS, gl.SliceLayout(1, layout))[:, None]
    pairs = gl.program_id(0) * BLOCK_N + gl.arange(0, BLOCK_N, gl.SliceLayout(0, layout))[None, :]
    head = pairs // HALF
    j = pairs % HALF
    first_rows = head * HEAD_DIM + j
    if bias_ptr is not None:
        a += gl.load(bias_ptr + first_rows, mask=pairs < NUM_PAIRS, other=0.0).to(gl.float32)
        b += gl.load(bias_ptr + first_rows + HALF, mask=pairs < NUM_PAIRS, other=0.0).to(gl.float32)
    a = a.to(element).to(gl.float32)
    b = b.to(element).to(gl.float32)
    real = (pairs < NUM_PAIRS) & (tokens < M)
    position = gl.load(positions_ptr + tokens, mask=tokens < M, other=0)
    is_value = head >= NUM_Q + NUM_KV
    turned = real & (head < NUM_Q + NUM_KV)
    angle_ptr = cos_sin_ptr + position * HEAD_DIM + j
    cos = gl.load(angle_ptr, mask=turned, other=1.0)
    sin = gl.load(angle_ptr + HALF, mask=turned, other=0.0)
    first = (a * cos - b * sin).to(element)
    second = (b * cos + a * sin).to(element)
    slot = gl.load(slots_ptr + tokens, mask=tokens < M, other=-1).to(gl.int64)
    is_query = real & (head < NUM_Q)
    is_key = turned & (head >= NUM_Q) & (slot >= 0)
    is_value = real & is_value & (slot >= 0)
    query_at = tokens * (NUM_Q * HEAD_DIM) + first_rows
    gl.store(q_ptr + query_at, first, mask=is_query)
    gl.store(q_ptr + query_at + HALF, second, mask=is_query)
    key_at = slot * (NUM_KV * HEAD_DIM) + first_rows - NUM_Q * HEAD_DIM
    gl.store(k_ptr + key_at, first, mask=is_key)
    gl.store(k_ptr + key_at + HALF, second, mask=is_key)
    value_at = key_at - NUM_KV * HEAD_DIM
    gl.store(v_ptr + value_at, first, mask=is_value)
    gl.store(v_ptr + value_at + HALF, second, mask=is_value)
