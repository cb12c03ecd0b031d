"""Rotary position embedding, half-split (GPT-NeoX order), in place."""

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
from lite_llama.ops.rope import reference


def rope(q: Tensor, k: Tensor, cos_sin: Tensor, positions: Tensor) -> None:
    """Rotate q and k [num_tokens, num heads of each, head_dim] in place.

    `cos_sin` float32 [max_positions, rotary_dim]: cosines in the first half of a row, sines in the
    second (any scaling, such as llama3 or YaRN, is already in it). `positions` [num_tokens].
    With rotary_dim < head_dim the dimensions behind rotary_dim stay as they are.
    Positions must lie in [0, max_positions); they are not checked on the device.
    (a, b) -> (a·cos − b·sin, b·cos + a·sin), a and b the two halves (Su et al. 2021).
    """
    check_rank("q", q, 3)
    check_rank("k", k, 3)
    check_integer("positions", positions)
    check_shape("positions", positions, (q.shape[0],))
    check(
        k.shape[0] == q.shape[0] and k.shape[2] == q.shape[2],
        lambda: (
            f"k has shape {tuple(k.shape)}, expected num_tokens and head_dim of q {tuple(q.shape)}"
        ),
    )
    check(
        cos_sin.dim() == 2 and cos_sin.shape[1] % 2 == 0 and cos_sin.shape[1] <= q.shape[2],
        lambda: (
            f"cos_sin has shape {tuple(cos_sin.shape)}, expected [max_positions, even <= head_dim]"
        ),
    )
    check(
        cos_sin.dtype == torch.float32,
        lambda: f"cos_sin has dtype {cos_sin.dtype}, expected float32",
    )
    check_float_up_to_32("q", q)
    check_same("k", k, "q", q)
    for name, x in (("q", q), ("k", k), ("cos_sin", cos_sin)):
        check_unit_stride(name, x)
    for name, x in (("cos_sin", cos_sin), ("positions", positions)):
        check_device(name, x, "q", q)
    if q.shape[0] == 0 or cos_sin.shape[1] == 0:
        return
    if q.is_cuda:
        from lite_llama.ops.rope import kernel

        kernel.rope(q, k, cos_sin, positions)
        return
    reference.rope(q, k, cos_sin, positions)
