"""Products with a weight matrix in Triton: one or two rows, a few rows, many rows.

`linear` and `fused_ffn` share these. Weights lie [out_features, in_features], as checkpoints
store them; sums are float32. A gated product reads gate and up rows side by side and writes
silu(gate)·up, so that the two never reach memory.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from lite_llama.kernel_lib import matmul_launch
from lite_llama.kernel_lib.matmul_launch import MatmulLaunch

SHORT_ROW = tl.constexpr(matmul_launch.SHORT_ROW)


@triton.jit
def _add_columns(
    x_ptr,
    w_ptr,
    row_offsets,
    up_offsets,
    k,
    sums,
    up_sums,
    x_row_stride,
    M: tl.constexpr,
    K: tl.constexpr,
    GATED: tl.constexpr,
):
    """Both sums with the products of columns `k` added."""
    inside = k < K  # Folded away where BLOCK_K divides K.
    w_at = w_ptr + row_offsets + k[None, :]
    w = tl.load(w_at, inside[None, :], 0.0, eviction_policy="evict_first").to(tl.float32)
    if GATED:
        up_at = w_ptr + up_offsets + k[None, :]
        up = tl.load(up_at, inside[None, :], 0.0, eviction_policy="evict_first").to(tl.float32)
    new_sums, new_up_sums = sums[:0], up_sums[:0]
    for i in tl.static_range(M):
        x = tl.load(x_ptr + i * x_row_stride + k, inside, 0.0).to(tl.float32)
        new_sums += (sums[i] + w * x[None, :],)
        new_up_sums += (up_sums[i] + up * x[None, :] if GATED else up_sums[i],)
    return new_sums, new_up_sums


@triton.jit
def vector_kernel(
    x_ptr,
    w_ptr,
    bias_ptr,
    y_ptr,
    n,
    x_row_stride,
    w_row_stride,
    M: tl.constexpr,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    GATED: tl.constexpr,
):
    """y [M, n] = x [M, K] wᵀ: BLOCK_N outputs a program, the weight read once, 16 bytes a load.

    Of short rows all loads are on their way together.
    """
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    columns = tl.arange(0, BLOCK_K)
    # Rows past the end repeat real ones; their results are not stored.
    row_offsets = (rows % n).to(tl.int64)[:, None] * w_row_stride
    up_offsets = row_offsets + n.to(tl.int64) * w_row_stride
    sums = (tl.zeros((BLOCK_N, BLOCK_K), tl.float32),) * M
    up_sums = sums
    if K <= SHORT_ROW:
        for start in tl.static_range(0, K, BLOCK_K):
            sums, up_sums = _add_columns(
                x_ptr, w_ptr, row_offsets, up_offsets, start + columns, sums, up_sums,
                x_row_stride, M, K, GATED,
            )  # fmt: skip
    else:
        for start in range(0, K, BLOCK_K):
            sums, up_sums = _add_columns(
                x_ptr, w_ptr, row_offsets, up_offsets, start + columns, sums, up_sums,
                x_row_stride, M, K, GATED,
            )  # fmt: skip
    for i in tl.static_range(M):
        y = tl.sum(sums[i], 1)
        if HAS_BIAS:
            y += tl.load(bias_ptr + rows, rows < n, 0.0).to(tl.float32)
        if GATED:
            y = y * tl.sigmoid(y) * tl.sum(up_sums[i], 1)
        tl.store(y_ptr + i * n + rows, y.to(y_ptr.dtype.element_ty), rows < n)


@triton.jit
def _load_tile(
    source,
    first_row,
    first_column,
    num_rows,
    num_columns,
    row_stride,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    EVEN_K: tl.constexpr,
    USE_TMA: tl.constexpr,
):
    """[ROWS, COLUMNS] of a matrix: `source` is a descriptor (TMA) or a pointer."""
    if USE_TMA:
        tile = source.load([first_row, first_column])
    else:
        rows = first_row + tl.arange(0, ROWS)
        columns = first_column + tl.arange(0, COLUMNS)
        pointers = source + rows.to(tl.int64)[:, None] * row_stride + columns[None, :]
        inside = (rows < num_rows)[:, None]
        if not EVEN_K:
            inside = inside & (columns < num_columns)[None, :]
        tile = tl.load(pointers, mask=inside, other=0.0)
    return tile


@triton.jit(do_not_specialize=["m"])  # The number of tokens brings no new compilation.
def tile_kernel(
    x_source,
    w_source,
    bias_ptr,
    y_ptr,
    x_scale_ptr,
    w_scale_ptr,
    m,
    n,
    k,
    x_row_stride,
    w_row_stride,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    GROUP_M: tl.constexpr,
    EVEN_K: tl.constexpr,
    HAS_BIAS: tl.constexpr,
    HAS_SCALES: tl.constexpr,
    GATED: tl.constexpr,
    USE_TMA: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """y [m, n] = x [m, k] wᵀ, one tile a program, tiles in groups of rows that share w in L2."""
    tiles_m = tl.cdiv(m, BLOCK_M)
    tiles_n = tl.cdiv(n, BLOCK_N)
    group = tl.program_id(0) // (GROUP_M * tiles_n)
    rows_in_group = tl.minimum(tiles_m - group * GROUP_M, GROUP_M)
    place = tl.program_id(0) % (GROUP_M * tiles_n)
    first_m = (group * GROUP_M + place % rows_in_group) * BLOCK_M
    first_n = place // rows_in_group * BLOCK_N

    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    acc_up = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for start in range(0, k, BLOCK_K):
        x = _load_tile(
            x_source, first_m, start, m, k, x_row_stride, BLOCK_M, BLOCK_K, EVEN_K, USE_TMA
        )
        w = _load_tile(
            w_source, first_n, start, n, k, w_row_stride, BLOCK_N, BLOCK_K, EVEN_K, USE_TMA
        )
        acc = tl.dot(x, w.T, acc, input_precision=PRECISION)
        if GATED:
            up = _load_tile(
                w_source, n + first_n, start, 2 * n, k, w_row_stride,
                BLOCK_N, BLOCK_K, EVEN_K, USE_TMA,
            )  # fmt: skip
            acc_up = tl.dot(x, up.T, acc_up, input_precision=PRECISION)

    rows = first_m + tl.arange(0, BLOCK_M)
    columns = first_n + tl.arange(0, BLOCK_N)
    if HAS_SCALES:
        acc *= tl.load(x_scale_ptr) * tl.load(w_scale_ptr)
    if HAS_BIAS:
        acc += tl.load(bias_ptr + columns, columns < n, 0.0).to(tl.float32)[None, :]
    if GATED:
        acc = acc * tl.sigmoid(acc) * acc_up
    y_pointers = y_ptr + rows.to(tl.int64)[:, None] * n + columns[None, :]
    inside = (rows < m)[:, None] & (columns < n)[None, :]
    tl.store(y_pointers, acc.to(y_ptr.dtype.element_ty), mask=inside)


def matmul(
    how: MatmulLaunch,
    x: Tensor,
    w: Tensor,
    bias: Tensor | None = None,
    *,
    gated: bool = False,
    scales: tuple[Tensor, Tensor] | None = None,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """x [m, k] times w [n, k] transposed (gated: w [2n, k]), plus bias [n], by Triton kernel `how`.

    x and w have contiguous rows; scales: one float32 element each for x and w (tile kernel only).
    """
    m, k = x.shape
    n = w.shape[0] // 2 if gated else w.shape[0]
    y = torch.empty((m, n), dtype=out_dtype or x.dtype, device=x.device)
    if how.kind == "vector":
        vector_kernel[(triton.cdiv(n, how.block_n),)](
            x,
            w,
            bias,
            y,
            n,
            x.stride(0),
            w.stride(0),
            M=m,
            K=k,
            BLOCK_N=how.block_n,
            BLOCK_K=how.block_k,
            HAS_BIAS=bias is not None,
            GATED=gated,
            num_warps=how.num_warps,
        )
        return y
    x_source, w_source = (
        (
            TensorDescriptor.from_tensor(x, [how.block_m, how.block_k]),
            TensorDescriptor.from_tensor(w, [how.block_n, how.block_k]),
        )
        if how.use_tma
        else (x, w)
    )
    x_scale, w_scale = scales or (None, None)
    tile_kernel[(triton.cdiv(m, how.block_m) * triton.cdiv(n, how.block_n),)](
        x_source,
        w_source,
        bias,
        y,
        x_scale,
        w_scale,
        m,
        n,
        k,
        x.stride(0),
        w.stride(0),
        BLOCK_M=how.block_m,
        BLOCK_N=how.block_n,
        BLOCK_K=how.block_k,
        GROUP_M=how.group_m,
        EVEN_K=k % how.block_k == 0,
        HAS_BIAS=bias is not None,
        HAS_SCALES=scales is not None,
        GATED=gated,
        USE_TMA=how.use_tma,
        PRECISION="ieee" if x.dtype == torch.float32 else "tf32",
        num_warps=how.num_warps,
        num_stages=how.num_stages,
    )
    return y


def tma_ready(*matrices: Tensor) -> bool:
    """What a tensor map asks for: base address and row stride in multiples of 16 bytes."""
    return all(
        x.data_ptr() % 16 == 0 and x.stride(0) * x.element_size() % 16 == 0 for x in matrices
    )
