"""Products of one token with a weight matrix, fused with what stands around them.

A decode step reads every weight once, so these kernels are a stream of weights with a little work
attached. A program owns a few rows; before it waits for the kernel that makes its input
(programmatic dependent launch) it loads its first tile and may ask for more of them in L2, so that
the memory bus is busy while that kernel ends. Only weights are touched before the wait: every read
of an activation, and every write, is after it.
"""

import triton
import triton.language as tl
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

LINE_BYTES = tl.constexpr(128)


@triton.jit
def load_tile(pointers, columns, K: tl.constexpr, BLOCK_K: tl.constexpr):
    """A weight tile; each is read once a step, so it need not stay in the cache."""
    if K % BLOCK_K == 0:
        return tl.load(pointers, eviction_policy="evict_first")
    return tl.load(pointers, mask=(columns < K)[None, :], other=0.0, eviction_policy="evict_first")


@triton.jit
def prefetch_columns(row_ptr, K: tl.constexpr, BEGIN: tl.constexpr, END: tl.constexpr):
    """Ask for columns BEGIN:END of some rows in L2; nothing is read into registers."""
    LINE: tl.constexpr = LINE_BYTES // (row_ptr.dtype.element_ty.primitive_bitwidth // 8)
    NUM_LINES: tl.constexpr = triton.next_power_of_2(triton.cdiv(END - BEGIN, LINE))
    # Places past the end ask for the row's last element once more.
    starts = tl.minimum(BEGIN + tl.arange(0, NUM_LINES) * LINE, K - 1)
    tl.inline_asm_elementwise(
        "prefetch.global.L2 [$1]; mov.u32 $0, 0;",
        "=r,l",
        [row_ptr[:, None] + starts[None, :]],
        dtype=tl.int32,
        is_pure=False,
        pack=1,
    )


@triton.jit
def products(
    x_ptr,
    norm_ptr,
    w_ptr,
    rows,
    eps,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    OVERLAP: tl.constexpr,
    TRIGGER: tl.constexpr,
    PRELOAD: tl.constexpr,
    PREFETCH: tl.constexpr,
):
    """w[rows] norm(x) of x [K], float32 [rows].

    The norm's scale is known when x has been read, that is at the end, and is applied there.
    """
    columns = tl.arange(0, BLOCK_K)
    row_ptr = w_ptr + rows.to(tl.int64) * K
    tile_ptr = row_ptr[:, None] + columns[None, :]
    if OVERLAP and TRIGGER == 0:
        gdc_launch_dependents()
    if PRELOAD:
        tile = load_tile(tile_ptr, columns, K, BLOCK_K)
    PRELOADED: tl.constexpr = BLOCK_K if PRELOAD else 0
    if PREFETCH * BLOCK_K > PRELOADED:
        prefetch_columns(row_ptr, K, PRELOADED, min(K, PREFETCH * BLOCK_K))
    if OVERLAP:
        gdc_wait()
    if not PRELOAD:
        tile = load_tile(tile_ptr, columns, K, BLOCK_K)
    sums = tl.zeros(tile.shape, tl.float32)
    squares = tl.zeros((BLOCK_K,), tl.float32)
    for start in tl.static_range(0, K, BLOCK_K):
        k = columns + start
        if start > 0:
            tile = load_tile(tile_ptr + start, k, K, BLOCK_K)
        if OVERLAP and TRIGGER > 0 and start == TRIGGER * BLOCK_K:
            gdc_launch_dependents()
        x = tl.load(x_ptr + k, mask=k < K, other=0.0).to(tl.float32)
        if norm_ptr is not None:
            squares += x * x
            x *= tl.load(norm_ptr + k, mask=k < K, other=0.0).to(tl.float32)
        sums += tile.to(tl.float32) * x[None, :]
    y = tl.sum(sums, 1)
    if norm_ptr is not None:
        y *= tl.rsqrt(tl.sum(squares) / K + eps)
    return y


@triton.jit
def single_kernel(
    x_ptr,
    norm_ptr,
    w_ptr,
    bias_ptr,
    residual_ptr,
    y_ptr,
    eps,
    N: tl.constexpr,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    OVERLAP: tl.constexpr,
    TRIGGER: tl.constexpr,
    PRELOAD: tl.constexpr,
    PREFETCH: tl.constexpr,
):
    """y [N] = w norm(x) + bias, and + residual where given; grid (N / BLOCK_N,)."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_ok = rows < N
    y = products(
        x_ptr, norm_ptr, w_ptr, tl.where(row_ok, rows, 0), eps,
        K, BLOCK_K, OVERLAP, TRIGGER, PRELOAD, PREFETCH,
    )  # fmt: skip
    if bias_ptr is not None:
        y += tl.load(bias_ptr + rows, mask=row_ok, other=0.0).to(tl.float32)
    # Rounded as the separate product would be, before the sum.
    y = y.to(w_ptr.dtype.element_ty)
    if residual_ptr is not None:
        y = y.to(tl.float32) + tl.load(residual_ptr + rows, mask=row_ok, other=0.0).to(tl.float32)
    tl.store(y_ptr + rows, y.to(y_ptr.dtype.element_ty), mask=row_ok)


@triton.jit
def pair_rows(BLOCK_N: tl.constexpr, NUM_PAIRS: tl.constexpr):
    """(pair, 0 or 1) of each of a program's 2 BLOCK_N rows; past the end: those of pair 0."""
    places = tl.arange(0, 2 * BLOCK_N)
    pairs = tl.program_id(0) * BLOCK_N + places // 2
    return tl.where(pairs < NUM_PAIRS, pairs, 0), places % 2


@triton.jit
def split_pairs(y, BLOCK_N: tl.constexpr):
    """First and second rows of pairs that lie side by side: [2 BLOCK_N] -> two [BLOCK_N]."""
    return tl.split(y.reshape(BLOCK_N, 2))
