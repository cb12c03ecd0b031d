"""Matrix-vector products of one decode step, fused with what stands around them.

One token reads every weight once, so these kernels are a stream of weights with a little work
attached. A program owns a few rows; it loads their first tile before it waits for the kernel that
makes its input (programmatic dependent launch), so that the memory bus is busy while that kernel
ends. Only weights are touched before the wait: every read of an activation, and every write, is
after it.
"""

from dataclasses import dataclass

import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from lite_llama.kernel_lib.gpu import gpu_spec


@dataclass(frozen=True)
class GemvLaunch:
    """`block_n` rows (or row pairs) a program, `block_k` columns a tile, `num_warps` warps."""

    block_n: int
    block_k: int
    num_warps: int


@triton.jit
def load_tile(pointers, row_ok, columns, K: tl.constexpr, EVEN: tl.constexpr):
    """A weight tile; each is read once a step, so it need not stay in the cache."""
    if EVEN:
        return tl.load(pointers, eviction_policy="evict_first")
    mask = row_ok[:, None] & (columns < K)[None, :]
    return tl.load(pointers, mask=mask, other=0.0, eviction_policy="evict_first")


@triton.jit
def norm_scale(x_ptr, eps, K: tl.constexpr, NORM: tl.constexpr):
    """1 / sqrt(mean(x²) + eps) of x [K]; 1 without a norm."""
    if NORM:
        BLOCK: tl.constexpr = triton.next_power_of_2(K)
        columns = tl.arange(0, BLOCK)
        x = tl.load(x_ptr + columns, mask=columns < K, other=0.0).to(tl.float32)
        return tl.rsqrt(tl.sum(x * x) / K + eps)
    return 1.0


@triton.jit
def load_input(x_ptr, norm_ptr, scale, columns, K: tl.constexpr, NORM: tl.constexpr):
    """Input values as float32, normalised and rounded as the separate norm would leave them."""
    x = tl.load(x_ptr + columns, mask=columns < K, other=0.0)
    if NORM:
        weight = tl.load(norm_ptr + columns, mask=columns < K, other=0.0).to(tl.float32)
        x = (x.to(tl.float32) * scale * weight).to(x.dtype)
    return x.to(tl.float32)


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
    NORM: tl.constexpr,
    ADD: tl.constexpr,
    BIAS: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """y = W norm(x) + bias, and + residual where ADD; grid (N / BLOCK_N,)."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_ok = rows < N
    columns = tl.arange(0, BLOCK_K)
    EVEN: tl.constexpr = N % BLOCK_N == 0 and K % BLOCK_K == 0
    tile_ptr = w_ptr + rows[:, None].to(tl.int64) * K + columns[None, :]
    if OVERLAP:
        gdc_launch_dependents()
    tile = load_tile(tile_ptr, row_ok, columns, K, EVEN)
    if OVERLAP:
        gdc_wait()
    scale = norm_scale(x_ptr, eps, K, NORM)
    acc = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for start in tl.static_range(0, K, BLOCK_K):
        if start > 0:
            tile = load_tile(tile_ptr + start, row_ok, columns + start, K, EVEN)
        x = load_input(x_ptr, norm_ptr, scale, columns + start, K, NORM)
        acc += tile.to(tl.float32) * x[None, :]
    y = tl.sum(acc, 1)
    if BIAS:
        y += tl.load(bias_ptr + rows, mask=row_ok, other=0.0).to(tl.float32)
    # Rounded as the separate product would be, before the sum.
    y = y.to(w_ptr.dtype.element_ty)
    if ADD:
        y = y.to(tl.float32) + tl.load(residual_ptr + rows, mask=row_ok, other=0.0).to(tl.float32)
    tl.store(y_ptr + rows, y.to(y_ptr.dtype.element_ty), mask=row_ok)


@triton.jit
def pair_products(
    x_ptr,
    norm_ptr,
    w_ptr,
    first_rows,
    second_rows,
    row_ok,
    eps,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    EVEN_N: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """(W[first_rows] norm(x), W[second_rows] norm(x)), float32 [BLOCK_N] each."""
    columns = tl.arange(0, BLOCK_K)
    EVEN: tl.constexpr = EVEN_N and K % BLOCK_K == 0
    first_ptr = w_ptr + first_rows[:, None].to(tl.int64) * K + columns[None, :]
    second_ptr = w_ptr + second_rows[:, None].to(tl.int64) * K + columns[None, :]
    if OVERLAP:
        gdc_launch_dependents()
    first = load_tile(first_ptr, row_ok, columns, K, EVEN)
    second = load_tile(second_ptr, row_ok, columns, K, EVEN)
    if OVERLAP:
        gdc_wait()
    scale = norm_scale(x_ptr, eps, K, NORM=True)
    first_acc = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    second_acc = tl.zeros((BLOCK_N, BLOCK_K), tl.float32)
    for start in tl.static_range(0, K, BLOCK_K):
        if start > 0:
            first = load_tile(first_ptr + start, row_ok, columns + start, K, EVEN)
            second = load_tile(second_ptr + start, row_ok, columns + start, K, EVEN)
        x = load_input(x_ptr, norm_ptr, scale, columns + start, K, NORM=True)
        first_acc += first.to(tl.float32) * x[None, :]
        second_acc += second.to(tl.float32) * x[None, :]
    return tl.sum(first_acc, 1), tl.sum(second_acc, 1)


def can_overlap(x: Tensor, *, overlap: bool) -> bool:
    """Whether to launch as a programmatic dependent: asked for, and the GPU has it."""
    return overlap and gpu_spec(x.device).has_pdl


def choose_gemv(num_rows: int, num_columns: int) -> GemvLaunch:
    """Tile for a weight of `num_rows` rows (or row pairs) and `num_columns` columns; pure.

    Found on one H200 by search over whole chains of Llama-3.2-1B in bf16 (torch 2.11, Triton 3.6;
    0.813 -> 0.767 ms a step): one row and one warp where rows are few, so that every SM has one;
    two rows where there are many; eight for a head.
    """
    widest = triton.next_power_of_2(num_columns)
    if num_rows >= 65536:
        return GemvLaunch(8, min(widest, 512), 4)
    if num_columns >= 4 * num_rows:
        return GemvLaunch(2, min(widest, 1024), 2)
    if num_rows <= 4096:
        return GemvLaunch(1, min(widest, 1024), 1)
    return GemvLaunch(2, min(widest, 1024), 4)


def run_single(
    x: Tensor,
    weight: Tensor,
    y: Tensor,
    *,
    norm: Tensor | None = None,
    eps: float = 0.0,
    bias: Tensor | None = None,
    residual: Tensor | None = None,
    overlap: bool = False,
) -> None:
    """Launch `single_kernel`: x [1, K], weight [N, K], y [1, N]."""
    num_rows, num_columns = weight.shape
    how = choose_gemv(num_rows, num_columns)
    overlap = can_overlap(x, overlap=overlap)
    single_kernel[(triton.cdiv(num_rows, how.block_n),)](
        x,
        norm,
        weight,
        bias,
        residual,
        y,
        eps,
        N=num_rows,
        K=num_columns,
        NORM=norm is not None,
        ADD=residual is not None,
        BIAS=bias is not None,
        BLOCK_N=how.block_n,
        BLOCK_K=how.block_k,
        OVERLAP=overlap,
        num_warps=how.num_warps,
        launch_pdl=overlap,
    )
