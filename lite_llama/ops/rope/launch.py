"""How many heads of a token one program rotates."""

from dataclasses import dataclass

from lite_llama.kernel_lib.rows import next_power_of_2

# Pairs a program, in 2 warps: 8 a thread, whose halves are 16 bytes each in bf16.
_PAIRS, _PAIRS_PER_WARP = 512, 256


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
    pairs = min(next_power_of_2(half), max(_PAIRS // heads, 64))
    most = next_power_of_2(max(num_q_heads, num_kv_heads))
    while heads * pairs < _PAIRS and heads < most:
        heads *= 2
    while heads * pairs > _PAIRS:
        heads //= 2
    return RopeLaunch(heads, pairs, num_warps=max(heads * pairs // _PAIRS_PER_WARP, 1))
