"""bias_rope_pad and unpad in Triton: a program moves several heads of one (padded) token."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lite_llama.kernel_lib.rows import ceil_div, next_power_of_2

# 128 threads with 16 bytes of either half of a head, or with four times 16 bytes to move.
_PAD_ELEMENTS, _UNPAD_ELEMENTS = 2048, 4096


@triton.jit
def _place(
    qkv_ptr,
    bias_ptr,
    out_ptr,
    cos,
    sin,
    heads,
    num_heads,
    in_sequence,
    position,
    seq_len,
    ROTATE: tl.constexpr,
    HALF: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
):
    # qkv_ptr, bias_ptr and out_ptr point at the first of `num_heads` heads of one kind.
    columns = tl.arange(0, BLOCK_HALF)[None, :]
    to_store = (heads < num_heads) & (columns < HALF)
    to_load = to_store & in_sequence
    at = heads * (2 * HALF) + columns
    a = tl.load(qkv_ptr + at, mask=to_load, other=0.0).to(tl.float32)
    b = tl.load(qkv_ptr + at + HALF, mask=to_load, other=0.0).to(tl.float32)
    a += tl.load(bias_ptr + at, mask=to_load, other=0.0).to(tl.float32)
    b += tl.load(bias_ptr + at + HALF, mask=to_load, other=0.0).to(tl.float32)
    if ROTATE:
        a, b = a * cos - b * sin, b * cos + a * sin
    out_at = out_ptr + (heads.to(tl.int64) * seq_len + position) * (2 * HALF) + columns
    tl.store(out_at, a.to(out_ptr.dtype.element_ty), mask=to_store)
    tl.store(out_at + HALF, b.to(out_ptr.dtype.element_ty), mask=to_store)


@triton.jit
def _bias_rope_pad(
    qkv_ptr,
    bias_ptr,
    cos_sin_ptr,
    cu_seqlens_ptr,
    q_ptr,
    k_ptr,
    v_ptr,
    qkv_row_stride,
    cos_sin_stride,
    seq_len,
    num_q_heads,
    num_kv_heads,
    HALF: tl.constexpr,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_HALF: tl.constexpr,
):
    q_pieces = tl.cdiv(num_q_heads, BLOCK_HEADS)
    kv_pieces = tl.cdiv(num_kv_heads, BLOCK_HEADS)
    pieces = q_pieces + 2 * kv_pieces
    piece = tl.program_id(0) % pieces
    slot = tl.program_id(0) // pieces
    sequence = (slot // seq_len).to(tl.int64)
    position = slot % seq_len
    begin = tl.load(cu_seqlens_ptr + sequence).to(tl.int64)
    end = tl.load(cu_seqlens_ptr + sequence + 1).to(tl.int64)
    in_sequence = begin + position < end
    columns = tl.arange(0, BLOCK_HALF)[None, :]
    row = cos_sin_ptr + position.to(tl.int64) * cos_sin_stride
    cos = tl.load(row + columns, mask=columns < HALF, other=0.0)
    sin = tl.load(row + HALF + columns, mask=columns < HALF, other=0.0)
    qkv_ptr += (begin + position) * qkv_row_stride
    heads = tl.arange(0, BLOCK_HEADS)[:, None]
    q_columns = num_q_heads * 2 * HALF
    kv_columns = num_kv_heads * 2 * HALF
    if piece < q_pieces:
        _place(
            qkv_ptr,
            bias_ptr,
            q_ptr + sequence * seq_len * q_columns,
            cos,
            sin,
            piece * BLOCK_HEADS + heads,
            num_q_heads,
            in_sequence,
            position,
            seq_len,
            ROTATE=True,
            HALF=HALF,
            BLOCK_HALF=BLOCK_HALF,
        )
    elif piece < q_pieces + kv_pieces:
        _place(
            qkv_ptr + q_columns,
            bias_ptr + q_columns,
            k_ptr + sequence * seq_len * kv_columns,
            cos,
            sin,
            (piece - q_pieces) * BLOCK_HEADS + heads,
            num_kv_heads,
            in_sequence,
            position,
            seq_len,
            ROTATE=True,
            HALF=HALF,
            BLOCK_HALF=BLOCK_HALF,
        )
    else:  # values are not rotated
        _place(
            qkv_ptr + q_columns + kv_columns,
            bias_ptr + q_columns + kv_columns,
            v_ptr + sequence * seq_len * kv_columns,
            cos,
            sin,
            (piece - q_pieces - kv_pieces) * BLOCK_HEADS + heads,
            num_kv_heads,
            in_sequence,
            position,
            seq_len,
            ROTATE=False,
            HALF=HALF,
            BLOCK_HALF=BLOCK_HALF,
        )


@triton.jit
def _unpad(
    x_ptr,
    cu_seqlens_ptr,
    out_ptr,
    batch_stride,
    head_stride,
    position_stride,
    seq_len,
    num_heads,
    head_dim,
    BLOCK_HEADS: tl.constexpr,
    BLOCK_DIM: tl.constexpr,
):
    pieces = tl.cdiv(num_heads, BLOCK_HEADS)
    slot = tl.program_id(0) // pieces
    sequence = (slot // seq_len).to(tl.int64)
    position = (slot % seq_len).to(tl.int64)
    begin = tl.load(cu_seqlens_ptr + sequence).to(tl.int64)
    end = tl.load(cu_seqlens_ptr + sequence + 1).to(tl.int64)
    heads = (tl.program_id(0) % pieces) * BLOCK_HEADS + tl.arange(0, BLOCK_HEADS)[:, None]
    columns = tl.arange(0, BLOCK_DIM)[None, :]
    mask = (heads < num_heads) & (columns < head_dim) & (begin + position < end)
    x_ptr += sequence * batch_stride + position * position_stride
    x = tl.load(x_ptr + heads.to(tl.int64) * head_stride + columns, mask=mask)
    out_at = out_ptr + ((begin + position) * num_heads + heads) * head_dim + columns
    tl.store(out_at, x, mask=mask)


def bias_rope_pad(
    qkv: Tensor,
    bias: Tensor,
    cos_sin: Tensor,
    cu_seqlens: Tensor,
    max_seq_len: int,
    num_q_heads: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Padded q, k and v of packed tokens."""
    head_dim = cos_sin.shape[1]
    num_kv_heads = (qkv.shape[1] // head_dim - num_q_heads) // 2
    batch = cu_seqlens.shape[0] - 1
    q, k, v = (
        torch.empty(batch, heads, max_seq_len, head_dim, dtype=qkv.dtype, device=qkv.device)
        for heads in (num_q_heads, num_kv_heads, num_kv_heads)
    )
    if q.numel() == 0:
        return q, k, v
    block_half = next_power_of_2(head_dim // 2)
    most_heads = max(num_q_heads, num_kv_heads)
    block_heads = _heads_per_program(most_heads, 2 * block_half, _PAD_ELEMENTS)
    pieces = ceil_div(num_q_heads, block_heads) + 2 * ceil_div(num_kv_heads, block_heads)
    _bias_rope_pad[(batch * max_seq_len * pieces,)](
        qkv,
        bias.contiguous(),
        cos_sin.contiguous(),
        cu_seqlens.contiguous(),
        q,
        k,
        v,
        qkv.stride(0),
        head_dim,
        max_seq_len,
        num_q_heads,
        num_kv_heads,
        HALF=head_dim // 2,
        BLOCK_HEADS=block_heads,
        BLOCK_HALF=block_half,
        num_warps=4,
    )
    return q, k, v


def unpad(x: Tensor, cu_seqlens: Tensor, num_tokens: int) -> Tensor:
    """The tokens of padded x, at least one."""
    x = x if x.stride(3) == 1 else x.contiguous()
    batch, num_heads, seq_len, head_dim = x.shape
    out = torch.empty(num_tokens, num_heads * head_dim, dtype=x.dtype, device=x.device)
    block_dim = next_power_of_2(head_dim)
    block_heads = _heads_per_program(num_heads, block_dim, _UNPAD_ELEMENTS)
    _unpad[(batch * seq_len * ceil_div(num_heads, block_heads),)](
        x,
        cu_seqlens.contiguous(),
        out,
        x.stride(0),
        x.stride(1),
        x.stride(2),
        seq_len,
        num_heads,
        head_dim,
        BLOCK_HEADS=block_heads,
        BLOCK_DIM=block_dim,
        num_warps=4,
    )
    return out


def _heads_per_program(num_heads: int, padded_head_dim: int, num_elements: int) -> int:
    return min(next_power_of_2(num_heads), max(1, num_elements // padded_head_dim))
