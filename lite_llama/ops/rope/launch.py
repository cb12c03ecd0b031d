"""How many heads of a token one program rotates."""

from dataclasses import dataclass

from lite_llama.kernel_lib.rows import next_power_of_2

# Pairs a program: 128 threads with 16 pairs each, 64 bytes in flight a thread in bf16.
_PAIRS = 2048


@dataclass(frozen=True)
class RopeLaunch:
    """A program rotates `heads` heads of one token, `half` pairs each (both powers of two)."""

    heads: int
    half: int
    num_warps: int


def choose_launch(num_heads: int, half: int) -> RopeLaunch:
    """`num_heads` of the tensor with more heads, `half` pairs a head."""
    padded = next_power_of_2(half)
    heads = min(next_power_of_2(num_heads), max(1, _PAIRS // padded))
    return RopeLaunch(heads, padded, num_warps=min(max(heads * padded // 512, 1), 8))
