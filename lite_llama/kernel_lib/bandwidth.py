"""Streaming kernels that reach a GPU's memory bandwidth: the roofs benchmarks are held against."""

import triton
import triton.language as tl
from torch import Tensor

# 256 threads with four 16-byte loads each.
_BLOCK = 4096


@triton.jit
def _read(x_ptr, sums_ptr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    tl.store(sums_ptr + tl.program_id(0), tl.sum(tl.load(x_ptr + at)))


@triton.jit
def _copy(x_ptr, out_ptr, BLOCK: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + at, eviction_policy="evict_first")
    tl.store(out_ptr + at, x, eviction_policy="evict_first")


def read(x: Tensor, sums: Tensor) -> None:
    """Read float32 x [n], n a multiple of 4096, and store n / 4096 sums."""
    _read[(x.numel() // _BLOCK,)](x, sums, BLOCK=_BLOCK, num_warps=8)


def copy(x: Tensor, out: Tensor) -> None:
    """Copy float32 x [n], n a multiple of 4096, to `out`."""
    _copy[(x.numel() // _BLOCK,)](x, out, BLOCK=_BLOCK, num_warps=8)
