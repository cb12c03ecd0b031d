"""Products of a few tokens with a weight matrix, fused with what stands around them.

A decode step reads every weight once, so these kernels are a stream of weights with a little work
attached. A program owns a few rows; before it waits for the kernel that makes its input
(programmatic dependent launch) it loads its first tile and may ask for more of them in L2, so that
the memory bus is busy while that kernel ends. Only what no kernel of the step writes (weights,
positions, slots) is read before the wait: every read of an activation, and every write, is after
it. A read takes as long as the rest of a small kernel, so none waits for another, and none stands
at the end.
"""

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from lite_llama.kernel_lib.decode_ring import product_columns, run_ring
from lite_llama.kernel_lib.gemv_launch import GemvLaunch
from lite_llama.kernel_lib.gpu import gpu_spec

LINE_BYTES = tl.constexpr(128)


@triton.jit
def load_tile(pointers, columns, K: tl.constexpr, BLOCK_K: tl.constexpr):
    """A weight tile; each is read once a step, so it need not stay in the cache."""
    if K % BLOCK_K == 0:
        return tl.load(pointers, eviction_policy="evict_first")
    return tl.load(pointers, mask=(columns < K)[None, :], other=0.0, eviction_policy="evict_first")


@triton.jit
def _load_rows(tile_ptr, K: tl.constexpr, BLOCK_K: tl.constexpr):
    """Whole rows of a weight, a tuple of tiles."""
    columns = tl.arange(0, BLOCK_K)
    tiles = (columns,)[:0]
    for start in tl.static_range(0, K, BLOCK_K):
        tiles += (load_tile(tile_ptr + start, columns + start, K, BLOCK_K),)
    return tiles


@triton.jit
def _load_two_groups(tile_ptr, K: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_K: tl.constexpr):
    """What of a program's groups is on its way before anything is waited for."""
    return _load_rows(tile_ptr, K, BLOCK_K) + _load_rows(tile_ptr + BLOCK_N * K, K, BLOCK_K)


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
def load_early(
    norm_ptr,
    w_ptr,
    rows,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    GROUPS: tl.constexpr,
    OVERLAP: tl.constexpr,
    TRIGGER: tl.constexpr,
    PRELOAD: tl.constexpr,
    PREFETCH: tl.constexpr,
):
    """What can be on its way before the wait: (the tiles' pointers, tiles, the norm's tiles).

    `rows`: of the first group of a program.
    """
    columns = tl.arange(0, BLOCK_K)
    row_ptr = w_ptr + rows.to(tl.int64) * K
    tile_ptr = row_ptr[:, None] + columns[None, :]
    if OVERLAP and (TRIGGER == 0 or GROUPS > 1):
        gdc_launch_dependents()
    tiles = (columns,)[:0]
    if PRELOAD and GROUPS > 1:
        tiles += _load_two_groups(tile_ptr, K, BLOCK_N, BLOCK_K)
    elif PRELOAD and STAGES == 0:
        tiles += (load_tile(tile_ptr, columns, K, BLOCK_K),)
    norm = (columns,)[:0]
    if norm_ptr is not None and STAGES == 0:
        norm = _load_vector(norm_ptr, K, BLOCK_K)
    PRELOADED: tl.constexpr = 0 if len(tiles) == 0 else (K if GROUPS > 1 else BLOCK_K)
    PREFETCHED: tl.constexpr = min(K, PREFETCH * BLOCK_K)
    if PREFETCHED > PRELOADED:
        prefetch_columns(row_ptr, K, PRELOADED, PREFETCHED)
    return tile_ptr, tiles, norm


@triton.jit
def wait(OVERLAP: tl.constexpr):
    """Until every kernel before this one has ended; call it between `load_early` and `products`."""
    if OVERLAP:
        gdc_wait()


@triton.jit
def products(
    x_ptr,
    norm_ptr,
    early,
    eps,
    M: tl.constexpr,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    GROUPS: tl.constexpr,
    OVERLAP: tl.constexpr,
    TRIGGER: tl.constexpr,
):
    """w[rows] norm(x)ᵀ of x [M, K], float32 [rows, num_columns]; tokens beyond M repeat or are 0.

    A tuple: these for the rows that `load_early` returned `early` for, and for GROUPS − 1 more
    sets of rows, BLOCK_N below one another.
    """
    if GROUPS > 1:
        y = _products_of_groups(x_ptr, early, eps, M, K, BLOCK_N, BLOCK_K, GROUPS)
    elif STAGES == 0:
        y = (_products_in_registers(x_ptr, early, eps, M, K, BLOCK_K, OVERLAP, TRIGGER),)
    else:
        y = (
            _products_on_tensor_cores(
                x_ptr, norm_ptr, early[0], eps, M, K, BLOCK_K, STAGES, OVERLAP, TRIGGER
            ),
        )
    return y


@triton.constexpr_function
def num_columns(num_tokens, stages):
    """Columns of what `products` returns: the tokens, and some more."""
    return product_columns(num_tokens) if stages > 0 else triton.next_power_of_2(num_tokens)


@triton.jit
def _load_vector(pointer, K: tl.constexpr, BLOCK_K: tl.constexpr):
    """A vector [K] as a tuple of tiles [BLOCK_K], all of whose loads are in flight together."""
    columns = tl.arange(0, BLOCK_K)
    tiles = (columns,)[:0]
    for start in tl.static_range(0, K, BLOCK_K):
        tiles += (tl.load(pointer + start + columns, mask=columns + start < K, other=0.0),)
    return tiles


@triton.jit
def _products_in_registers(
    x_ptr,
    early,
    eps,
    M: tl.constexpr,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    OVERLAP: tl.constexpr,
    TRIGGER: tl.constexpr,
):
    """The first tiles, and all of the norm if there is one, are there already."""
    tile_ptr, tiles, norm = early
    TOKENS: tl.constexpr = triton.next_power_of_2(M)
    columns = tl.arange(0, BLOCK_K)
    inputs = (columns,)[:0]
    scales = (columns,)[:0]
    if len(norm) > 0:
        # Read once, for the scale and for the products: a read takes as long as all else here.
        for i in tl.static_range(TOKENS):
            inputs += (_load_vector(x_ptr + min(i, M - 1) * K, K, BLOCK_K),)
    # Two tiles are on their way before anything is waited for.
    for start in tl.static_range(0, min(K, 2 * BLOCK_K), BLOCK_K):
        if start // BLOCK_K == len(tiles):
            tiles += (load_tile(tile_ptr + start, columns + start, K, BLOCK_K),)
    if len(norm) > 0:
        for i in tl.static_range(TOKENS):
            scales += (_norm_scale(inputs[i], eps, K, BLOCK_K),)
    sums = (tl.zeros(tile_ptr.shape, tl.float32),) * TOKENS
    for start in tl.static_range(0, K, BLOCK_K):
        k = columns + start
        if start // BLOCK_K < len(tiles):
            tile = tiles[start // BLOCK_K]
        else:
            tile = load_tile(tile_ptr + start, k, K, BLOCK_K)
        if OVERLAP and TRIGGER > 0 and start == TRIGGER * BLOCK_K:
            gdc_launch_dependents()
        wide = tile.to(tl.float32)
        new_sums = sums[:0]
        for i in tl.static_range(TOKENS):
            if len(norm) > 0:
                x = inputs[i][start // BLOCK_K]
                x = _normed(x, scales[i], norm[start // BLOCK_K])
            else:
                x = tl.load(x_ptr + min(i, M - 1) * K + k, mask=k < K, other=0.0)
            new_sums += (sums[i] + wide * x.to(tl.float32)[None, :],)
        sums = new_sums
    return _total(sums)


@triton.jit
def _total(sums):
    """[rows, tokens]: sums [rows, columns] of each token, over the columns."""
    if len(sums) == 1:
        y = tl.sum(sums[0], 1)[:, None]
    else:
        tl.static_assert(len(sums) == 2, "in registers: one token or two")
        y = tl.join(tl.sum(sums[0], 1), tl.sum(sums[1], 1))
    return y


@triton.jit
def _products_of_groups(
    x_ptr,
    early,
    eps,
    M: tl.constexpr,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """As `_products_in_registers`, of whole rows, for groups of them in turn.

    All programs of a launch go on from the wait together. One that loads nothing while it computes
    leaves the memory idle, as all others compute then, too.
    """
    tile_ptr, tiles, norm = early
    TOKENS: tl.constexpr = triton.next_power_of_2(M)
    TILES: tl.constexpr = triton.cdiv(K, BLOCK_K)
    columns = tl.arange(0, BLOCK_K)
    inputs = (columns,)[:0]
    for i in tl.static_range(TOKENS):
        inputs += _load_vector(x_ptr + min(i, M - 1) * K, K, BLOCK_K)
    if len(tiles) == 0:
        tiles += _load_two_groups(tile_ptr, K, BLOCK_N, BLOCK_K)
    if len(norm) > 0:
        normed = (columns,)[:0]
        for i in tl.static_range(TOKENS):
            x = inputs[i * TILES : (i + 1) * TILES]
            scale = _norm_scale(x, eps, K, BLOCK_K)
            for j in tl.static_range(TILES):
                normed += (_normed(x[j], scale, norm[j]),)
        inputs = normed
    found = (columns,)[:0]
    for group in tl.static_range(GROUPS):
        wide = _widened(tiles[group * TILES : (group + 1) * TILES])
        if group + 2 < GROUPS:
            tiles += _load_rows(tile_ptr + (group + 2) * BLOCK_N * K, K, BLOCK_K)
        sums = (columns,)[:0]
        for i in tl.static_range(TOKENS):
            sums += (_multiplied(wide, inputs[i * TILES : (i + 1) * TILES]),)
        found += (_total(sums),)
    return found


@triton.jit
def _widened(tiles):
    wide = tiles[:0]
    for j in tl.static_range(len(tiles)):
        wide += (tiles[j].to(tl.float32),)
    return wide


@triton.jit
def _multiplied(wide, x):
    """[rows, BLOCK_K]: tiles of rows times those of x, summed over the tiles."""
    y = wide[0] * x[0].to(tl.float32)[None, :]
    for j in tl.static_range(1, len(wide)):
        y += wide[j] * x[j].to(tl.float32)[None, :]
    return y


@triton.jit
def _normed(x, scale, norm):
    """A tile of x, normed and rounded as a separate norm would leave it."""
    return (x.to(tl.float32) * scale * norm.to(tl.float32)).to(x.dtype)


@triton.jit
def _norm_scale(x, eps, K: tl.constexpr, BLOCK_K: tl.constexpr):
    """1 / sqrt(mean(x²) + eps) of x [K], a tuple of tiles."""
    squares = tl.zeros((BLOCK_K,), tl.float32)
    for start in tl.static_range(0, K, BLOCK_K):
        wide = x[start // BLOCK_K].to(tl.float32)
        squares += wide * wide
    return tl.rsqrt(tl.sum(squares) / K + eps)


@triton.jit
def _products_on_tensor_cores(
    x_ptr,
    norm_ptr,
    tile_ptr,
    eps,
    M: tl.constexpr,
    K: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    OVERLAP: tl.constexpr,
    TRIGGER: tl.constexpr,
):
    """Rows of the weight are the rows of the tensor cores' tile, tokens its few columns."""
    TOKENS: tl.constexpr = product_columns(M)
    PRECISION: tl.constexpr = "ieee" if x_ptr.dtype.element_ty == tl.float32 else "tf32"
    columns = tl.arange(0, BLOCK_K)
    tokens = tl.arange(0, TOKENS)
    token_ptr = x_ptr + tokens[:, None] * K
    real = (tokens < M)[:, None]
    scale = 1.0
    if norm_ptr is not None:
        squares = tl.zeros((TOKENS, BLOCK_K), tl.float32)
        for start in tl.range(0, K, BLOCK_K):
            k = columns + start
            x = tl.load(token_ptr + k[None, :], mask=real & (k < K)[None, :], other=0.0)
            squares += x.to(tl.float32) * x.to(tl.float32)
        scale = tl.rsqrt(tl.sum(squares, 1) / K + eps)[:, None]
    y = tl.zeros((tile_ptr.shape[0], TOKENS), tl.float32)
    for start in tl.range(0, K, BLOCK_K, num_stages=STAGES):
        k = columns + start
        if OVERLAP and TRIGGER > 0 and start == TRIGGER * BLOCK_K:
            gdc_launch_dependents()
        tile = load_tile(tile_ptr + start, k, K, BLOCK_K)
        x = tl.load(token_ptr + k[None, :], mask=real & (k < K)[None, :], other=0.0)
        if norm_ptr is not None:
            norm = tl.load(norm_ptr + k, mask=k < K, other=0.0).to(tl.float32)
            x = _normed(x, scale, norm[None, :])
        y = tl.dot(tile, x.T, y, input_precision=PRECISION)
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
    M: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    OVERLAP: tl.constexpr,
    TRIGGER: tl.constexpr,
    PRELOAD: tl.constexpr,
    PREFETCH: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """y [M, N] = norm(x) wᵀ + bias + residual; grid (N / BLOCK_N / GROUPS,)."""
    rows = tl.program_id(0) * (BLOCK_N * GROUPS) + tl.arange(0, BLOCK_N)
    row_ok = rows < N
    early = load_early(
        norm_ptr, w_ptr, tl.where(row_ok, rows, 0),
        K, BLOCK_N, BLOCK_K, STAGES, GROUPS, OVERLAP, TRIGGER, PRELOAD, PREFETCH,
    )  # fmt: skip
    biases, residuals = (rows,)[:0], (rows,)[:0]
    if bias_ptr is not None:
        for group in tl.static_range(GROUPS):
            biases += (tl.load(bias_ptr + rows + group * BLOCK_N, mask=row_ok, other=0.0),)
    wait(OVERLAP)
    tokens = tl.arange(0, num_columns(M, STAGES))
    places = tokens[None, :] * N + rows[:, None]
    inside = row_ok[:, None] & (tokens < M)[None, :]
    if residual_ptr is not None:
        for group in tl.static_range(GROUPS):
            residuals += (tl.load(residual_ptr + places + group * BLOCK_N, inside, other=0.0),)
        # Or the compiler moves the loads to the end, where nothing hides them.
        tl.debug_barrier()
    found = products(
        x_ptr, norm_ptr, early, eps, M, K, BLOCK_N, BLOCK_K, STAGES, GROUPS, OVERLAP, TRIGGER
    )
    for group in tl.static_range(GROUPS):
        y = found[group]
        if bias_ptr is not None:
            y += biases[group].to(tl.float32)[:, None]
        # Rounded as the separate product would be, before the sum.
        y = y.to(w_ptr.dtype.element_ty)
        if residual_ptr is not None:
            y = y.to(tl.float32) + residuals[group].to(tl.float32)
        tl.store(y_ptr + places + group * BLOCK_N, y.to(y_ptr.dtype.element_ty), mask=inside)


@triton.jit
def pair_rows(BLOCK_N: tl.constexpr, GROUPS: tl.constexpr, NUM_PAIRS: tl.constexpr):
    """(pair, 0 or 1) of the first 2 BLOCK_N rows of a program; pair 0 for one past the end."""
    places = tl.arange(0, 2 * BLOCK_N)
    pairs = tl.program_id(0) * (BLOCK_N * GROUPS) + places // 2
    return tl.where(pairs < NUM_PAIRS, pairs, 0), places % 2


@triton.jit
def split_pairs(y):
    """First and second rows of pairs that lie side by side: [2 n, tokens] -> two [n, tokens]."""
    return tl.split(y.reshape(y.shape[0] // 2, 2, y.shape[1]).permute(0, 2, 1))


def run_single(
    x: Tensor,
    weight: Tensor,
    y: Tensor,
    how: GemvLaunch,
    *,
    norm: Tensor | None = None,
    eps: float = 0.0,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
) -> None:
    """Launch `single_kernel` or `ring_kernel`: x [M, K], weight [N, K], y [M, N]."""
    num_rows, num_columns = weight.shape
    if how.is_ring(num_columns, weight.dtype, gpu_spec(x.device)):
        run_ring(x, weight, y, how, norm=norm, eps=eps, bias=bias, residual=residual)
        return
    groups = how.num_groups(num_rows)
    single_kernel[(triton.cdiv(num_rows, how.block_n * groups),)](
        x,
        norm,
        weight,
        bias,
        residual,
        y,
        eps,
        M=len(x),
        N=num_rows,
        K=num_columns,
        GROUPS=groups,
        **how.constants(num_columns, gpu_spec(x.device)),
    )
