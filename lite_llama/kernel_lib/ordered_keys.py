"""Floats as unsigned integers that sort alike: maxima, thresholds and ties become exact."""

import triton
import triton.language as tl


@triton.jit
def ordered_key(x):
    """uint32 that orders as float32 `x` does: −0 equals 0, NaN is above all, no key is 0.

    Key 0 is left for lanes that hold no value.
    """
    x = x.to(tl.float32) + 0.0  # −0 + 0 is 0
    bits = x.to(tl.uint32, bitcast=True)
    key = tl.where(bits >= 0x80000000, bits ^ 0xFFFFFFFF, bits | 0x80000000)
    return tl.where(x != x, 0xFFFFFFFF, key).to(tl.uint32)


@triton.jit
def indexed_key(key, index):
    """Non-negative int64 that orders by key, and among equal keys puts the lower index on top."""
    return (key.to(tl.int64) << 31) | (0x7FFFFFFF - index).to(tl.int64)


@triton.jit
def index_of(indexed):
    """The index that indexed_key put in."""
    return 0x7FFFFFFF - (indexed & 0x7FFFFFFF)
