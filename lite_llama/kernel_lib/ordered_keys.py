"""Floats as unsigned integers that sort alike: maxima, thresholds and ties become exact."""

import triton
import triton.language as tl


@triton.jit
def ordered_key(x):
    """uint32 that orders as float32 `x` does: −0 equals 0, NaN is above all, no key is 0.

    Key 0 is left for lanes that hold no value.
    """
    x = x.to(tl.float32) + 0.0  # −0 + 0 is 0
    bits = x.to(tl.int32, bitcast=True)
    key = (bits ^ ((bits >> 31) | -0x80000000)).to(tl.uint32, bitcast=True)
    return tl.where(x != x, 0xFFFFFFFF, key).to(tl.uint32)


@triton.jit
def float_of_key(key):
    """The float32 behind a key of ordered_key."""
    bits = tl.where(key >= 0x80000000, key ^ 0x80000000, key ^ 0xFFFFFFFF).to(tl.uint32)
    return bits.to(tl.float32, bitcast=True)


@triton.jit
def indexed_key(key, index):
    """Non-negative int64 that orders by key, and among equal keys puts the lower index on top."""
    return (key.to(tl.int64) << 31) | (0x7FFFFFFF - index).to(tl.int64)


@triton.jit
def index_of(indexed):
    """The index that indexed_key put in."""
    return 0x7FFFFFFF - (indexed & 0x7FFFFFFF)


@triton.jit
def best_indexed_key(key, index):
    """indexed_key of the largest key and the lowest index that has it, in 32-bit reductions."""
    largest = tl.max(key)
    first = tl.min(tl.where(key == largest, index, 0x7FFFFFFF))
    return indexed_key(largest, first)


@triton.jit
def largest_reaching(key, weight, wanted, low, high):
    """The largest t for which the weights of `key` >= t sum to `wanted`, by bisection over bits.

    `low` is known to reach it (or is 0), no key lies above `high`: bits that they settle cost
    no sum. Where a sum is `wanted` exactly the search ends: t then splits the keys alike.
    """
    threshold = tl.full([], 0, tl.uint32)
    bit = tl.full([], 0x80000000, tl.uint32)
    while bit != 0:
        higher = threshold | bit
        bit = bit >> 1
        if higher <= low:
            threshold = higher
        elif higher <= high:
            reached = tl.sum(tl.where(key >= higher, weight, 0.0))
            if reached >= wanted:
                threshold = higher
            if reached == wanted:
                bit = tl.zeros_like(bit)
    return threshold
