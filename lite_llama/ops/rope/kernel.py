"""rope in Triton: a program rotates some heads of one token; sines come from the table."""

import triton
import triton.language as tl
from torch import Tensor

from lite_llama.kernel_lib.rows import ceil_div
from lite_llama.ops.rope.launch import choose_launch


@triton.jit
def _rope(
    q_ptr,
    k_ptr,
    cos_sin_ptr,
    positions_ptr,
    q_token_stride,
    q_head_stride,
    k_token_stride,
    k_head_stride,
    cos_sin_stride,
    num_q_heads,
    num_kv_heads,
    HALF: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_PAIRS: tl.constexpr,
):
    q_pieces = tl.cdiv(num_q_heads, BLOCK_HEADS)
    pieces = q_pieces + tl.cdiv(num_kv_heads, BLOCK_HEADS)
    cuts: tl.constexpr = (HALF + BLOCK_PAIRS - 1) // BLOCK_PAIRS
    # Neighbouring programs share a cut of the table.
    piece = tl.program_id(0) % pieces
    cut = (tl.program_id(0) // pieces) % cuts
    token = (tl.program_id(0) // (pieces * cuts)).to(tl.int64)
    heads = tl.arange(0, BLOCK_HEADS)[:, None]
    columns = cut * BLOCK_PAIRS + tl.arange(0, BLOCK_PAIRS)[None, :]
    in_row = columns < HALF
    if piece < q_pieces:
        heads += piece * BLOCK_HEADS
        mask = (heads < num_q_heads) & in_row
        a_at = q_ptr + token * q_token_stride + heads.to(tl.int64) * q_head_stride + columns
    else:
        heads += (piece - q_pieces) * BLOCK_HEADS
        mask = (heads < num_kv_heads) & in_row
        a_at = k_ptr + token * k_token_stride + heads.to(tl.int64) * k_head_stride + columns
    # Before the position, which the angles' places wait for.
    a = tl.load(a_at, mask=mask, other=0.0)
    b = tl.load(a_at + HALF, mask=mask, other=0.0)
    row = cos_sin_ptr + tl.load(positions_ptr + token).to(tl.int64) * cos_sin_stride
    cos = tl.load(row + columns, mask=in_row, other=0.0)
    sin = tl.load(row + HALF + columns, mask=in_row, other=0.0)
    a, b = a.to(tl.float32), b.to(tl.float32)
    tl.store(a_at, (a * cos - b * sin).to(q_ptr.dtype.element_ty), mask=mask)
    tl.store(a_at + HALF, (b * cos + a * sin).to(q_ptr.dtype.element_ty), mask=mask)


def rope(q: Tensor, k: Tensor, cos_sin: Tensor, positions: Tensor) -> None:
    """Rotate q and k in place; at least one token."""
    num_tokens, num_q_heads, _ = q.shape
    num_kv_heads = k.shape[1]
    half = cos_sin.shape[1] // 2
    launch = choose_launch(num_q_heads, num_kv_heads, half)
    pieces = ceil_div(num_q_heads, launch.heads) + ceil_div(num_kv_heads, launch.heads)
    _rope[(num_tokens * ceil_div(half, launch.pairs) * pieces,)](
        q,
        k,
        cos_sin,
        positions.contiguous(),
        q.stride(0),
        q.stride(1),
        k.stride(0),
        k.stride(1),
        cos_sin.stride(0),
        num_q_heads,
        num_kv_heads,
        HALF=half,
        BLOCK_HEADS=launch.heads,
        BLOCK_PAIRS=launch.pairs,
        num_warps=launch.num_warps,
    )
