"""What a step does with its queries, keys and values, wherever they were multiplied.

Triton and Gluon kernels both call it: it is arithmetic on what they hold, in any layout.
"""

import triton
import triton.language as tl


@triton.jit
def store_rotated(
    q_ptr, k_ptr, v_ptr, a, b, cos, sin, tokens, head, first_rows, slot, real, turned,
    NUM_Q: tl.constexpr, NUM_KV: tl.constexpr, HALF: tl.constexpr, ELEMENT: tl.constexpr,
):  # fmt: skip
    """Rotate pairs (a, b) and store them: queries, and keys and values at their token's slot.

    float32 [pairs, tokens], as are `real` (a pair and token that exist) and `turned` (of them,
    those of queries and keys); `first_rows` of the pairs, whose second rows lie HALF below.
    """
    # Which of two products is rounded must not depend on what else is in the kernel.
    first = tl.fma(a, cos, -b * sin).to(ELEMENT)
    second = tl.fma(b, cos, a * sin).to(ELEMENT)
    is_query = real & (head < NUM_Q)
    is_key = turned & (head >= NUM_Q) & (slot >= 0)
    is_value = real & (head >= NUM_Q + NUM_KV) & (slot >= 0)
    query_at = tokens * (NUM_Q * 2 * HALF) + first_rows
    tl.store(q_ptr + query_at, first, mask=is_query)
    tl.store(q_ptr + query_at + HALF, second, mask=is_query)
    key_at = slot * (NUM_KV * 2 * HALF) + first_rows - NUM_Q * 2 * HALF
    tl.store(k_ptr + key_at, first, mask=is_key)
    tl.store(k_ptr + key_at + HALF, second, mask=is_key)
    value_at = key_at - NUM_KV * 2 * HALF
    tl.store(v_ptr + value_at, first, mask=is_value)
    tl.store(v_ptr + value_at + HALF, second, mask=is_value)
