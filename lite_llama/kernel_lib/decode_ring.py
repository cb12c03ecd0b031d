"""Products of 1 to 16 tokens: weights on their way to shared memory before the wait (Gluon).

As in `decode_gemv`, a program owns a few rows and asks for weights before it waits for the kernel
that makes its input. Here they come by asynchronous copies into a ring of STAGES tiles, which plain
Triton's pipelined loop would begin after the wait, and go to the tensor cores from there: 0.81 ->
0.69 ms for all products of a step of Llama-3.2-1B, of which 0.54 are the bytes
(docs/lab/decode_chain.md).

The warps of a program split every tile's columns, one batch of a batched product each. So x lies
once in a program's registers, as the right operand, straight from global memory, and the sum over
warps is one pass through shared memory at the end. With GROUPS a program owns several sets of rows;
the ring goes on from one to the next, and x is normed once.
"""

from dataclasses import replace

import triton
from torch import Tensor
from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.ampere import async_copy, mma_v2
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from lite_llama.kernel_lib.decode_rotation import store_rotated
from lite_llama.kernel_lib.gemv_launch import GemvLaunch, token_columns
from lite_llama.kernel_lib.gpu import gpu_spec

product_columns = gluon.constexpr_function(token_columns)
# Its name from Triton 3.9 on, and the one before.
load_to_shared = getattr(async_copy, "async_load", None) or async_copy.async_copy_global_to_shared
# Tiles of x, times tokens, on their way before the first is needed, where no norm needs them all.
_TILES_AHEAD = gl.constexpr(64)
# Shared memory for the sums over warps, and what the driver keeps, for each eight tokens.
_OTHER_BYTES = 8 << 10
# Of an SM: what a program's threads may have together.
_REGISTERS = 64 << 10


@gluon.constexpr_function
def _product_layout(num_warps):
    """Of [num_warps, rows, tokens]."""
    return gl.NVMMADistributedLayout(
        version=[2, 0], warps_per_cta=[num_warps, 1, 1], instr_shape=[1, 16, 8]
    )


@gluon.constexpr_function
def _copy_layout(num_warps, columns):
    """Of a tile [num_warps, rows, columns] while it is copied: 16 bytes a thread."""
    lanes = min(32, columns // 8)
    return gl.BlockedLayout([1, 1, 8], [1, 32 // lanes, lanes], [num_warps, 1, 1], [2, 1, 0])


@gluon.constexpr_function
def _ring_layout(columns):
    """Of a tile in shared memory: reads of 16 bytes by 4 lanes a row meet no bank twice."""
    if columns == 32:
        return gl.SwizzledSharedLayout(8, 1, 1, [2, 1, 0])
    return gl.SwizzledSharedLayout(32, 1, 2, [2, 1, 0])


@gluon.constexpr_function
def _sum_layout(num_warps, rows):
    """Of [num_warps, rows, tokens]: what is summed lies in one thread."""
    lanes = min(32, rows)
    warps = max(1, min(num_warps, rows // 32))
    return gl.BlockedLayout(
        [num_warps, 1, 1], [1, lanes, 32 // lanes], [1, warps, num_warps // warps], [0, 1, 2]
    )


@gluon.constexpr_function
def _pair_layout(num_warps, rows, tokens):
    """The same, and rows r and r + rows / 2 in one thread."""
    half = (rows // 2).bit_length() - 1
    lanes = [[0, 1 << i, 0] for i in range(half)]
    lanes += [[0, 0, 1 << i] for i in range(tokens.bit_length() - 1)]
    rest, splits = lanes[5:], num_warps.bit_length() - 1
    warps = [rest[i] if i < len(rest) else [0, 0, 0] for i in range(splits)]
    registers = [[1 << i, 0, 0] for i in range(splits)] + [[0, rows // 2, 0]] + rest[splits:]
    return gl.DistributedLinearLayout(registers, lanes[:5], warps, [], [num_warps, rows, tokens])


@gluon.constexpr_function
def _norm_layout(num_warps, columns):
    """Of [num_warps, columns]: 16 bytes a thread."""
    lanes = min(32, columns // 8)
    return gl.BlockedLayout([1, 8], [32 // lanes, lanes], [num_warps, 1], [1, 0])


@gluon.jit
def _pair_rows(pairs, which, SPAN: gl.constexpr):
    """Rows of the weight: the first or second of pairs, which lie SPAN rows apart."""
    return pairs // SPAN * (2 * SPAN) + pairs % SPAN + which * SPAN


@gluon.jit
def _tile_pointers(
    w_ptr, first, N: gl.constexpr, K: gl.constexpr, SPAN: gl.constexpr, ROWS: gl.constexpr,
    COLUMNS: gl.constexpr, LAYOUT: gl.constexpr,
):  # fmt: skip
    """Of the first tile of ROWS rows from `first` on; of pairs, their first rows and then the rest.

    Rows past the end are the last one.
    """
    i = gl.arange(0, ROWS, gl.SliceLayout(0, gl.SliceLayout(2, LAYOUT)))
    if SPAN > 0:
        pairs = gl.minimum(first // 2 + i % (ROWS // 2), N // 2 - 1)
        rows = _pair_rows(pairs, i // (ROWS // 2), SPAN)
    else:
        rows = gl.minimum(first + i, N - 1)
    warps = gl.arange(0, gl.num_warps(), gl.SliceLayout(1, gl.SliceLayout(2, LAYOUT)))
    columns = gl.arange(0, COLUMNS, gl.SliceLayout(0, gl.SliceLayout(1, LAYOUT)))
    places = rows.to(gl.int64)[None, :, None] * K + (warps * COLUMNS)[:, None, None]
    return w_ptr + (places + columns[None, None, :])


@gluon.jit
def _copy(buffer, tile_ptr):
    load_to_shared(buffer, tile_ptr)
    async_copy.commit_group()


@gluon.jit
def _sums_of_group(
    group, tile_ptr, next_ptr, buffers, xs, x_tile_ptr,
    TOKENS: gl.constexpr, ROWS: gl.constexpr, BLOCK_K: gl.constexpr, TILES: gl.constexpr,
    GROUPS: gl.constexpr, OVERLAP: gl.constexpr, TRIGGER: gl.constexpr,
):  # fmt: skip
    """Partial sums [num_warps, ROWS, TOKENS]; the ring is filled with what comes next."""
    DEPTH: gl.constexpr = len(buffers)
    PRODUCT: gl.constexpr = _product_layout(gl.num_warps())
    sums = gl.zeros([gl.num_warps(), ROWS, TOKENS], gl.float32, PRODUCT)
    for t in gl.static_range(TILES):
        async_copy.wait_group(DEPTH - 1 if GROUPS > 1 else min(TILES, DEPTH + t) - t - 1)
        tile = buffers[t % DEPTH].load(gl.DotOperandLayout(0, PRODUCT, 8))
        # The compiler puts a barrier here: every warp has read what is overwritten now.
        if t + DEPTH < TILES:
            _copy(buffers[t % DEPTH], tile_ptr + (t + DEPTH) * BLOCK_K)
        elif GROUPS > 1:
            if group + 1 < GROUPS:
                load_to_shared(buffers[t % DEPTH], next_ptr + (t + DEPTH - TILES) * BLOCK_K)
            async_copy.commit_group()
        if OVERLAP and TRIGGER > 0 and t == max(0, TILES - DEPTH - 1):  # noqa: SIM102 - constants
            if group + 1 == GROUPS:
                gdc_launch_dependents()
        if len(xs) < TILES:
            xs += (gl.load(x_tile_ptr + len(xs) * BLOCK_K),)
        sums = mma_v2(tile, xs[t], sums)
    return sums


@gluon.jit
def ring_kernel(
    x_ptr, norm_ptr, w_ptr, bias_ptr, residual_ptr, y_ptr,
    cos_sin_ptr, positions_ptr, slots_ptr, k_ptr, v_ptr, eps,
    M: gl.constexpr, N: gl.constexpr, K: gl.constexpr, SPAN: gl.constexpr,
    NUM_Q: gl.constexpr, NUM_KV: gl.constexpr,
    ROWS: gl.constexpr, BLOCK_K: gl.constexpr, STAGES: gl.constexpr, GROUPS: gl.constexpr,
    OVERLAP: gl.constexpr, TRIGGER: gl.constexpr,
):  # fmt: skip
    """y of norm(x) [M, K] and w [N, K]; grid (N / ROWS / GROUPS,).

    SPAN 0: y [M, N] = norm(x) wᵀ + bias + residual. Else rows SPAN apart are pairs (a, b): with
    NUM_Q heads of 2 SPAN they are rotated and y [M, NUM_Q, 2 SPAN], k and v are written, as
    `norm_qkv` does; without, y [M, N / 2] = silu(a) b.
    """
    TOKENS: gl.constexpr = product_columns(M)
    W: gl.constexpr = gl.num_warps()
    COLUMNS: gl.constexpr = BLOCK_K // W
    TILES: gl.constexpr = K // BLOCK_K
    DEPTH: gl.constexpr = min(STAGES, TILES)
    gl.static_assert(K % BLOCK_K == 0)
    gl.static_assert(GROUPS == 1 or TILES % DEPTH == 0)
    ELEMENT: gl.constexpr = w_ptr.dtype.element_ty
    COPY: gl.constexpr = _copy_layout(W, COLUMNS)
    RIGHT: gl.constexpr = gl.DotOperandLayout(1, _product_layout(W), 8)
    OUT_ROWS: gl.constexpr = ROWS // 2 if SPAN > 0 else ROWS
    NUM_OUT: gl.constexpr = N // 2 if SPAN > 0 else N
    SUMS: gl.constexpr = _sum_layout(W, OUT_ROWS)
    OUT: gl.constexpr = gl.SliceLayout(0, SUMS)

    if OVERLAP and TRIGGER == 0:
        gdc_launch_dependents()
    first = gl.program_id(0) * (ROWS * GROUPS)
    tile_ptr = _tile_pointers(w_ptr, first, N, K, SPAN, ROWS, COLUMNS, COPY)
    # Before the wait: what no kernel of the step writes.
    norms = ()
    if norm_ptr is not None:
        NORM: gl.constexpr = _norm_layout(W, COLUMNS)
        PLAIN: gl.constexpr = gl.SwizzledSharedLayout(1, 1, 1, [1, 0])
        norm_at = (gl.arange(0, W, gl.SliceLayout(1, NORM)) * COLUMNS)[:, None]
        norm_at = norm_at + gl.arange(0, COLUMNS, gl.SliceLayout(0, NORM))[None, :]
        for t in gl.static_range(TILES):
            norms += (gl.allocate_shared_memory(norm_ptr.dtype.element_ty, [W, COLUMNS], PLAIN),)
            load_to_shared(norms[t], norm_ptr + t * BLOCK_K + norm_at)
        async_copy.commit_group()
    buffers = ()
    for t in gl.static_range(DEPTH):
        buffers += (gl.allocate_shared_memory(ELEMENT, [W, ROWS, COLUMNS], _ring_layout(COLUMNS)),)
        _copy(buffers[t], tile_ptr + t * BLOCK_K)
    rows = gl.arange(0, OUT_ROWS, gl.SliceLayout(1, OUT)) + gl.program_id(0) * (OUT_ROWS * GROUPS)
    out_tokens = gl.arange(0, TOKENS, gl.SliceLayout(0, OUT))[None, :]
    first_rows = rows
    if SPAN > 0:
        first_rows = _pair_rows(rows, 0, SPAN)
    if bias_ptr is not None:
        gl.static_assert(GROUPS == 1)
        bias = gl.load(bias_ptr + first_rows, mask=rows < NUM_OUT, other=0.0)
        if SPAN > 0:
            second_bias = gl.load(bias_ptr + first_rows + SPAN, mask=rows < NUM_OUT, other=0.0)
    if NUM_Q > 0:
        gl.static_assert(GROUPS == 1)
        real_tokens = gl.minimum(out_tokens, M - 1)
        slot = gl.load(slots_ptr + real_tokens).to(gl.int64)
        position = gl.load(positions_ptr + real_tokens)
        head = (rows // SPAN)[:, None]
        real = (rows < NUM_OUT)[:, None] & (out_tokens < M)
        turned = real & (head < NUM_Q + NUM_KV)
        angle_ptr = cos_sin_ptr + position * (2 * SPAN) + (rows % SPAN)[:, None]
        cos = gl.load(angle_ptr, mask=turned, other=1.0)
        sin = gl.load(angle_ptr + SPAN, mask=turned, other=0.0)
    if OVERLAP:
        gdc_wait()

    # After it: activations.
    columns = gl.arange(0, COLUMNS, gl.SliceLayout(0, gl.SliceLayout(2, RIGHT)))[None, :]
    columns += (gl.arange(0, W, gl.SliceLayout(1, gl.SliceLayout(2, RIGHT))) * COLUMNS)[:, None]
    tokens = gl.arange(0, TOKENS, gl.SliceLayout(0, gl.SliceLayout(1, RIGHT)))
    if M < TOKENS:  # the last one once more; no result of it is stored
        tokens = gl.minimum(tokens, M - 1)
    x_tile_ptr = x_ptr + (gl.expand_dims(columns, 2) + tokens[None, None, :] * K)
    ALL: gl.constexpr = norm_ptr is not None or GROUPS > 1
    xs = ()
    for t in gl.static_range(TILES if ALL else min(TILES, _TILES_AHEAD // TOKENS)):
        xs += (gl.load(x_tile_ptr + t * BLOCK_K),)
    if residual_ptr is not None:
        gl.static_assert(GROUPS == 1)
        inside = (rows < NUM_OUT)[:, None] & (out_tokens < M)
        residual = gl.load(residual_ptr + out_tokens * N + rows[:, None], mask=inside, other=0.0)
    if norm_ptr is not None:
        squares = gl.zeros([W, COLUMNS, TOKENS], gl.float32, RIGHT)
        for t in gl.static_range(TILES):
            squares += xs[t].to(gl.float32) * xs[t].to(gl.float32)
        scale = gl.rsqrt(gl.sum(gl.sum(squares, 1), 0) / K + eps)[None, None, :]
        normed = ()
        async_copy.wait_group(DEPTH)
        for t in gl.static_range(TILES):
            norm = gl.expand_dims(norms[t].load(gl.SliceLayout(2, RIGHT)).to(gl.float32), 2)
            normed += ((xs[t].to(gl.float32) * scale * norm).to(ELEMENT),)
        xs = normed

    for group in range(GROUPS):
        next_ptr = tile_ptr
        if GROUPS > 1:
            next_first = first + (group + 1) * ROWS
            next_ptr = _tile_pointers(w_ptr, next_first, N, K, SPAN, ROWS, COLUMNS, COPY)
        sums = _sums_of_group(
            group, tile_ptr, next_ptr, buffers, xs, x_tile_ptr,
            TOKENS, ROWS, BLOCK_K, TILES, GROUPS, OVERLAP, TRIGGER,
        )  # fmt: skip
        tile_ptr = next_ptr
        own_rows = rows + group * OUT_ROWS
        inside = (own_rows < NUM_OUT)[:, None] & (out_tokens < M)
        places = out_tokens * NUM_OUT + own_rows[:, None]
        if SPAN == 0:
            y = gl.sum(gl.convert_layout(sums, SUMS), 0)
            if bias_ptr is not None:
                y += bias.to(gl.float32)[:, None]
            # Rounded as the separate product would be, before the sum.
            y = y.to(ELEMENT)
            if residual_ptr is not None:
                y = y.to(gl.float32) + residual.to(gl.float32)
            gl.store(y_ptr + places, y.to(y_ptr.dtype.element_ty), mask=inside)
        else:
            pairs = gl.sum(gl.convert_layout(sums, _pair_layout(W, ROWS, TOKENS)), 0)
            pairs = gl.permute(gl.reshape(pairs, [2, OUT_ROWS, TOKENS]), [1, 2, 0])
            a, b = gl.split(pairs)
            a, b = gl.convert_layout(a, OUT), gl.convert_layout(b, OUT)
            if bias_ptr is not None:
                a += bias.to(gl.float32)[:, None]
                b += second_bias.to(gl.float32)[:, None]
            a, b = a.to(ELEMENT).to(gl.float32), b.to(ELEMENT).to(gl.float32)
            if NUM_Q == 0:
                y = a / (1.0 + gl.exp(-a)) * b
                gl.store(y_ptr + places, y.to(y_ptr.dtype.element_ty), mask=inside)
            else:
                store_rotated(
                    y_ptr, k_ptr, v_ptr, a, b, cos, sin, out_tokens, head, first_rows[:, None],
                    slot, real, turned, NUM_Q, NUM_KV, SPAN, ELEMENT,
                )  # fmt: skip


def run_ring(
    x: Tensor,
    weight: Tensor,
    y: Tensor,
    how: GemvLaunch,
    *,
    norm: Tensor | None = None,
    eps: float = 0.0,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    span: int = 0,
    rotation: tuple[Tensor, Tensor, Tensor] | None = None,
    caches: tuple[Tensor, Tensor] | None = None,
) -> None:
    """Launch `ring_kernel`: x [M, K], weight [N, K].

    `rotation`: angles, positions and slots of heads of 2 `span`, whose keys and values go to
    `caches` [num_blocks, block_size, num_kv_heads, head_dim].
    """
    num_rows, num_columns = weight.shape
    rows, gpu = how.block_n * (2 if span else 1), gpu_spec(x.device)
    width = token_columns(len(x))
    room = gpu.shared_bytes_per_block - _OTHER_BYTES * width // 8
    room -= num_columns * weight.itemsize
    most = max(1, room // (rows * how.block_k * weight.itemsize))
    how = replace(how, num_stages=min(how.num_stages, most))
    alone = bias is not None or residual is not None or caches is not None
    groups = 1 if alone else how.ring_groups(num_columns)
    num_kv = 0 if caches is None else caches[0].shape[2]
    overlap = how.overlap >= 0 and gpu.has_pdl
    ring_kernel[(triton.cdiv(num_rows, rows * groups),)](
        x,
        norm,
        weight,
        bias,
        residual,
        y,
        *(rotation or (None, None, None)),
        *(caches or (None, None)),
        eps,
        M=len(x),
        N=num_rows,
        K=num_columns,
        SPAN=span,
        NUM_Q=num_rows // (2 * span) - 2 * num_kv if num_kv else 0,
        NUM_KV=num_kv,
        ROWS=rows,
        BLOCK_K=how.block_k,
        STAGES=how.num_stages,
        GROUPS=groups,
        OVERLAP=overlap,
        TRIGGER=int(how.overlap > 0),
        num_warps=how.num_warps,
        maxnreg=_registers(
            how.num_warps,
            num_columns * width,
            groups,
            has_norm=norm is not None,
            rotates=num_kv > 0,
        ),
        launch_pdl=overlap,
    )


def _registers(
    num_warps: int, num_values: int, groups: int, *, has_norm: bool, rotates: bool
) -> int:
    """Registers of a thread: two programs an SM where nothing spills, and room beside them."""
    least = 64 if num_warps > 8 else 96 if groups > 1 else 128
    if not has_norm and groups == 1:
        return least
    taken = num_values // (64 * num_warps) + (8 if rotates else 0)  # by x, and by angles
    steps = ((16, 64), (32, 96), (48, 128))
    limit = max(least, next((limit for most, limit in steps if taken <= most), 168))
    return min(limit, _REGISTERS // (32 * num_warps))
