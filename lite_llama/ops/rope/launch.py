"""How many heads of a token one program rotates."""

from dataclasses import dataclass

from lite_llama.kernel_lib.rows import next_power_of_2

# Pairs a program, at least and at most: 16 pairs a thread, 64 bytes in flight a thread in bf16.
_MIN_PAIRS, _MAX_PAIRS = 512, 1024


@dataclass(frozen=True)
class RopeLaunch:
    """A program rotates `heads` heads of one token, `pairs` pairs each (both powers of two)."""

    heads: int
    pairs: int
    num_warps: int


def choose_launch(num_q_heads: int, num_kv_heads: int, half: int) -> RopeLaunch:
    """`half` pairs a head. All heads of a token want the same sines: as many share a program as
    have their like in k, and long heads are cut, so that the table is read once.
    """
    heads = next_power_of_2(min(num_q_heads, num_kv_heads))
    pairs = min(next_power_of_2(half), max(_MAX_PAIRS // heads, 64))
    most = next_power_of_2(max(num_q_heads, num_kv_heads))
    while heads * pairs < _MIN_PAIRS and heads < most:
        heads *= 2
    while heads * pairs > _MAX_PAIRS:
        heads //= 2
    # Long heads: half as many a thread.
    per_warp = 512 if pairs <= 64 else 256
    return RopeLaunch(heads, pairs, num_warps=max(heads * pairs // per_warp, 1))
