"""From the rows of a fused projection to padded heads, and back."""

import torch
from torch import Tensor

from lite_llama.kernel_lib.checks import (
    check,
    check_device,
    check_float_up_to_32,
    check_integer,
    check_rank,
    check_same,
    check_shape,
    check_unit_stride,
)
from lite_llama.ops.bias_rope_pad import reference


def bias_rope_pad(
    qkv: Tensor,
    bias: Tensor,
    cos_sin: Tensor,
    cu_seqlens: Tensor,
    max_seq_len: int,
    num_q_heads: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Add the bias, rotate q and k, and lay the tokens out in padded batches.

    qkv [num_tokens, (num_q_heads + 2 · num_kv_heads) · head_dim], bias of its row's length;
    cos_sin float32 [>= max_seq_len, head_dim] as for rope; cu_seqlens int [batch + 1]: sequence i
    holds tokens cu_seqlens[i] .. cu_seqlens[i + 1], at positions 0, 1, ...; none is longer than
    max_seq_len. Returns q [batch, num_q_heads, max_seq_len, head_dim] and k, v with num_kv_heads;
    padding is 0. Computed in float32 and rounded once.
    """
    head_dim = cos_sin.shape[-1]
    check_rank("qkv", qkv, 2)
    check_float_up_to_32("qkv", qkv)
    check_unit_stride("qkv", qkv)
    check_shape("bias", bias, (qkv.shape[1],))
    check_same("bias", bias, "qkv", qkv)
    check(
        cos_sin.dim() == 2
        and cos_sin.dtype == torch.float32
        and cos_sin.shape[0] >= max_seq_len
        and head_dim % 2 == 0,
        lambda: (
            f"cos_sin has dtype {cos_sin.dtype} and shape {tuple(cos_sin.shape)}, expected float32 "
            f"[>= {max_seq_len}, even head_dim]"
        ),
    )
    kv_columns = qkv.shape[1] - num_q_heads * head_dim
    check(
        kv_columns > 0 and kv_columns % (2 * head_dim) == 0,
        lambda: (
            f"qkv has {qkv.shape[1]} columns, expected ({num_q_heads} + 2 · num_kv_heads) · "
            f"{head_dim}"
        ),
    )
    _check_cu_seqlens(cu_seqlens, qkv)
    if qkv.is_cuda:
        from lite_llama.ops.bias_rope_pad import kernel

        return kernel.bias_rope_pad(qkv, bias, cos_sin, cu_seqlens, max_seq_len, num_q_heads)
    return reference.bias_rope_pad(qkv, bias, cos_sin, cu_seqlens, max_seq_len, num_q_heads)


def unpad(x: Tensor, cu_seqlens: Tensor, num_tokens: int) -> Tensor:
    """x [batch, num_heads, seq, head_dim] -> its tokens [num_tokens, num_heads · head_dim].

    cu_seqlens int [batch + 1], its last entry num_tokens, no sequence longer than seq.
    """
    check_rank("x", x, 4)
    check_shape("cu_seqlens", cu_seqlens, (x.shape[0] + 1,))
    _check_cu_seqlens(cu_seqlens, x)
    check(num_tokens >= 0, lambda: f"num_tokens is {num_tokens}, expected at least 0")
    if num_tokens == 0 or x.numel() == 0:
        shape = (num_tokens, x.shape[1] * x.shape[3])
        return torch.empty(shape, dtype=x.dtype, device=x.device)
    if x.is_cuda:
        from lite_llama.ops.bias_rope_pad import kernel

        return kernel.unpad(x, cu_seqlens, num_tokens)
    return reference.unpad(x, cu_seqlens, num_tokens)


def _check_cu_seqlens(cu_seqlens: Tensor, x: Tensor) -> None:
    check_rank("cu_seqlens", cu_seqlens, 1)
    check_integer("cu_seqlens", cu_seqlens)
    check(cu_seqlens.shape[0] >= 1, lambda: "cu_seqlens is empty, expected [batch + 1]")
    check_device("cu_seqlens", cu_seqlens, "x", x)
