"""norm_gate_up on tensor cores, in Gluon: gate and up rows lie side by side in the tile."""

import triton.experimental.gluon.language as gl
from triton.experimental import gluon

from lite_llama.kernel_lib.decode_mma import NUM_TOKENS, products, weight_layout


@gluon.jit
def norm_gate_up_kernel(
    x_ptr,
    norm_ptr,
    w_ptr,
    y_ptr,
    eps,
    M: gl.constexpr,
    INTER: gl.constexpr,
    K: gl.constexpr,
    BLOCK_N: gl.constexpr,
    BLOCK_K: gl.constexpr,
    STAGES: gl.constexpr,
    OVERLAP: gl.constexpr,
    TRIGGER: gl.constexpr,
    PRELOAD: gl.constexpr,
    PREFETCH: gl.constexpr,
):
    """Grid (INTER / BLOCK_N,)."""
    w_layout: gl.constexpr = gl.SliceLayout(0, weight_layout(gl.num_warps()))
    places = gl.arange(0, 2 * BLOCK_N, w_layout)
    pairs = gl.program_id(0) * BLOCK_N + places // 2
    rows = gl.where(pairs < INTER, pairs, 0) + places % 2 * INTER
    y = products(
        x_ptr, norm_ptr, w_ptr, rows, eps,
        M, K, BLOCK_K, STAGES, OVERLAP, TRIGGER, PRELOAD, PREFETCH,
    )  # fmt: skip
    y = y.to(w_ptr.dtype.element_ty).to(gl.float32)
    gate, up = gl.split(y.reshape((NUM_TOKENS, BLOCK_N, 2)))
    y = gate / (1.0 + gl.exp(-gate)) * up
    layout: gl.constexpr = y.type.layout
    tokens = gl.arange(0, NUM_TOKENS, gl.SliceLayout(1, layout))[:, None]
    columns = gl.program_id(0) * BLOCK_N + gl.arange(0, BLOCK_N, gl.SliceLayout(0, layout))[None, :]
    inside = (tokens < M) & (columns < INTER)
    gl.store(y_ptr + tokens * INTER + columns, y.to(y_ptr.dtype.element_ty), mask=inside)
