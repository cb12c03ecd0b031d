"""Products of 2 to 16 tokens with a weight matrix on tensor cores, fused with what is around.

In Gluon, for the one thing plain Triton hides: which lane holds which element. A product sums over
k, and any order of k will do. So a lane loads 16 neighbouring bytes of a weight row and the same
16 of a token (`k_width` 8), and what it has is its share of the tensor cores' operands: weights go
from memory to registers to the product, with no shared memory, shuffle or barrier on the way. That
leaves what a single token's kernel has too: a stream of 16-byte loads, the first of them before the
wait for the kernel that makes the input (see decode_gemv).

Tokens are rows of the tile, weight rows its columns: eight of them a warp are the least.
"""

import triton.experimental.gluon.language as gl
from triton.experimental import gluon
from triton.experimental.gluon.language.nvidia.ampere import mma_v2
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

NUM_TOKENS = gl.constexpr(16)
LINE_BYTES = gl.constexpr(128)


@gluon.constexpr_function
def tile_layout(num_warps):
    """Of the products: warps side by side over weight rows."""
    return gl.NVMMADistributedLayout(
        version=[2, 0], warps_per_cta=[1, num_warps], instr_shape=[16, 8]
    )


@gluon.constexpr_function
def token_layout(num_warps):
    """Of the tokens [16, k]."""
    return gl.DotOperandLayout(0, tile_layout(num_warps), k_width=8)


@gluon.constexpr_function
def weight_layout(num_warps):
    """Of the weights, transposed [k, rows]."""
    return gl.DotOperandLayout(1, tile_layout(num_warps), k_width=8)


@gluon.jit
def load_weights(tile_ptr, k, start, K: gl.constexpr, BLOCK_K: gl.constexpr):
    """A tile of weights [BLOCK_K, rows]; each is read once a step, so it need not stay cached."""
    if K % BLOCK_K == 0:
        return gl.load(tile_ptr + start, eviction_policy="evict_first")
    inside = (k + start < K)[:, None]
    return gl.load(tile_ptr + start, mask=inside, other=0.0, eviction_policy="evict_first")


@gluon.jit
def prefetch(row_ptr, BEGIN: gl.constexpr, END: gl.constexpr):
    """Ask for columns BEGIN:END of some rows in L2; nothing is read into registers."""
    LINE: gl.constexpr = LINE_BYTES // (row_ptr.dtype.element_ty.primitive_bitwidth // 8)
    for start in gl.static_range(BEGIN, END, LINE):
        gl.inline_asm_elementwise(
            "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
            "=r,l",
            [row_ptr + start],
            dtype=gl.int32,
            is_pure=False,
            pack=1,
        )


@gluon.jit
def norm_scales(token_ptr, real, x_k, eps, K: gl.constexpr, BLOCK_K: gl.constexpr):
    """1 / sqrt(mean(x²) + eps) of each token, [16, 1]."""
    squares = gl.zeros((NUM_TOKENS, BLOCK_K), gl.float32, token_layout(gl.num_warps()))
    for start in range(0, K, BLOCK_K):
        k = x_k + start
        x = gl.load(token_ptr + k[None, :], mask=real & (k < K)[None, :], other=0.0).to(gl.float32)
        squares += x * x
    return gl.rsqrt(gl.sum(squares, 1) / K + eps)[:, None]


@gluon.jit
def products(
    x_ptr,
    norm_ptr,
    w_ptr,
    rows,
    eps,
    M: gl.constexpr,
    K: gl.constexpr,
    BLOCK_K: gl.constexpr,
    STAGES: gl.constexpr,
    OVERLAP: gl.constexpr,
    TRIGGER: gl.constexpr,
    PRELOAD: gl.constexpr,
    PREFETCH: gl.constexpr,
):
    """norm(x) w[rows]ᵀ of x [M, K], float32 [16, rows] in `tile_layout`; STAGES tiles in flight."""
    WARPS: gl.constexpr = gl.num_warps()
    x_layout: gl.constexpr = token_layout(WARPS)
    w_layout: gl.constexpr = weight_layout(WARPS)
    # In float16 x without the norm's scale may overflow.
    SCALE_FIRST: gl.constexpr = norm_ptr is not None and x_ptr.dtype.element_ty == gl.float16
    tokens = gl.arange(0, NUM_TOKENS, gl.SliceLayout(1, x_layout))
    real = (tokens < M)[:, None]
    x_k = gl.arange(0, BLOCK_K, gl.SliceLayout(0, x_layout))
    w_k = gl.arange(0, BLOCK_K, gl.SliceLayout(1, w_layout))
    row_ptr = w_ptr + rows.to(gl.int64) * K
    tile_ptr = row_ptr[None, :] + w_k[:, None]
    token_ptr = x_ptr + tokens[:, None] * K
    if OVERLAP and TRIGGER == 0:
        gdc_launch_dependents()
    DEPTH: gl.constexpr = min(STAGES, (K + BLOCK_K - 1) // BLOCK_K)
    tiles = ()
    if PRELOAD:
        for i in gl.static_range(DEPTH):
            tiles += (load_weights(tile_ptr, w_k, i * BLOCK_K, K, BLOCK_K),)
    PRELOADED: gl.constexpr = DEPTH * BLOCK_K if PRELOAD else 0
    prefetch(row_ptr, PRELOADED, min(K, PREFETCH * BLOCK_K))
    if OVERLAP:
        gdc_wait()
    if not PRELOAD:
        for i in gl.static_range(DEPTH):
            tiles += (load_weights(tile_ptr, w_k, i * BLOCK_K, K, BLOCK_K),)
    scale = 1.0
    if SCALE_FIRST:
        scale = norm_scales(token_ptr, real, x_k, eps, K, BLOCK_K)
    squares = gl.zeros((NUM_TOKENS, BLOCK_K), gl.float32, x_layout)
    y = gl.zeros((NUM_TOKENS, rows.shape[0]), gl.float32, tile_layout(WARPS))
    for start in gl.static_range(0, K, BLOCK_K):
        if OVERLAP and TRIGGER > 0 and start == TRIGGER * BLOCK_K:
            gdc_launch_dependents()
        k = x_k + start
        x = gl.load(token_ptr + k[None, :], mask=real & (k < K)[None, :], other=0.0)
        if norm_ptr is not None:
            wide = x.to(gl.float32)
            if SCALE_FIRST:
                wide *= scale
            else:
                squares += wide * wide
            norm = gl.load(norm_ptr + k, mask=k < K, other=0.0).to(gl.float32)
            x = (wide * norm[None, :]).to(x.dtype)
        y = mma_v2(x, tiles[0], y)
        if start + DEPTH * BLOCK_K < K:
            tiles += (load_weights(tile_ptr, w_k, start + DEPTH * BLOCK_K, K, BLOCK_K),)
        tiles = tiles[1:]
    if norm_ptr is not None and not SCALE_FIRST:
        last = gl.rsqrt(gl.sum(squares, 1) / K + eps)
        y *= gl.convert_layout(last, gl.SliceLayout(1, tile_layout(WARPS)))[:, None]
    return y


@gluon.jit
def single_kernel(
    x_ptr,
    norm_ptr,
    w_ptr,
    bias_ptr,
    residual_ptr,
    y_ptr,
    eps,
    M: gl.constexpr,
    N: gl.constexpr,
    K: gl.constexpr,
    BLOCK_N: gl.constexpr,
    BLOCK_K: gl.constexpr,
    STAGES: gl.constexpr,
    OVERLAP: gl.constexpr,
    TRIGGER: gl.constexpr,
    PRELOAD: gl.constexpr,
    PREFETCH: gl.constexpr,
):
    """y [M, N] = norm(x) wᵀ + bias, and + residual where given; grid (N / BLOCK_N,)."""
    w_layout: gl.constexpr = weight_layout(gl.num_warps())
    rows = gl.program_id(0) * BLOCK_N + gl.arange(0, BLOCK_N, gl.SliceLayout(0, w_layout))
    y = products(
        x_ptr, norm_ptr, w_ptr, gl.where(rows < N, rows, 0), eps,
        M, K, BLOCK_K, STAGES, OVERLAP, TRIGGER, PRELOAD, PREFETCH,
    )  # fmt: skip
    layout: gl.constexpr = y.type.layout
    tokens = gl.arange(0, NUM_TOKENS, gl.SliceLayout(1, layout))[:, None]
    columns = gl.program_id(0) * BLOCK_N + gl.arange(0, BLOCK_N, gl.SliceLayout(0, layout))[None, :]
    inside = (tokens < M) & (columns < N)
    if bias_ptr is not None:
        y += gl.load(bias_ptr + columns, mask=columns < N, other=0.0).to(gl.float32)
    # Rounded as the separate product would be, before the sum.
    y = y.to(w_ptr.dtype.element_ty)
    places = tokens * N + columns
    if residual_ptr is not None:
        y = y.to(gl.float32) + gl.load(residual_ptr + places, mask=inside, other=0.0).to(gl.float32)
    gl.store(y_ptr + places, y.to(y_ptr.dtype.element_ty), mask=inside)
