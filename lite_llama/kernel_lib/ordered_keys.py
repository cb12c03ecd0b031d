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
def best_of_piece(row_ptr, first, n, BLOCK: tl.constexpr):
    """indexed_key of the largest of BLOCK values of a row [n] from `first` on, by lowest index."""
    index = first + tl.arange(0, BLOCK)
    inside = index < n
    key = ordered_key(tl.load(row_ptr + index, mask=inside, other=0.0))
    return best_indexed_key(tl.where(inside, key, 0), index)


@triton.jit
def sums_reaching(key, weight, threshold, step, NUM: tl.constexpr):
    """[NUM]: sums of the weights [n] of `key` >= threshold + i · step, in one reduction."""
    thresholds = threshold + tl.arange(0, NUM).to(tl.uint32) * step
    reaching = key[None, :] >= thresholds[:, None]
    return tl.sum(tl.where(reaching, weight[None, :], 0.0), axis=1)


@triton.jit
def largest_reaching(key, weight, wanted, low, high):
    """The largest t for which the weights [n] of `key` >= t sum to `wanted`: 2 bits a sum.

    `low` is known to reach it (or is 0), no key lies above `high`: bits that they settle cost
    no sum. Where a sum is `wanted` exactly the search ends: t then splits the keys alike.
    """
    threshold = tl.full([], 0, tl.uint32)
    step = tl.full([], 0x40000000, tl.uint32)
    while step != 0:
        next_step = step >> 2
        if threshold + 3 * step <= low:
            threshold += 3 * step
        elif (low ^ high) < step:  # equal from this bit on
            threshold = high - (high & (step - 1))
        elif threshold + step <= high:
            sums = sums_reaching(key, weight, threshold, step, 4)
            # Sums fall with the threshold: those that reach are the first ones.
            digit = tl.maximum(tl.sum((sums >= wanted).to(tl.int32)) - 1, 0)
            threshold += digit.to(tl.uint32) * step
            threshold = tl.maximum(threshold, low - (low & (step - 1)))
            if tl.sum((sums == wanted).to(tl.int32)) > 0:
                next_step = tl.zeros_like(step)
        step = next_step
    return threshold
