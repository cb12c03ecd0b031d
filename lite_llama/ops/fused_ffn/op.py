"""The whole gated feed-forward block."""

import torch
from torch import Tensor

from lite_llama.kernel_lib.checks import check, check_float_up_to_32, check_rank, check_same
from lite_llama.ops.fused_ffn import reference


def fused_ffn(x: Tensor, gate_up_weight: Tensor, down_weight: Tensor) -> Tensor:
    """down(silu(gate x) · up x) (Shazeer 2020) for x [num_tokens, hidden_size].

    gate_up_weight [2 · intermediate_size, hidden_size], gate rows first; down_weight
    [hidden_size, intermediate_size]; all of one dtype. Sums are float32; silu(gate) · up is
    rounded to x's dtype once. Returns [num_tokens, hidden_size].
    """
    for name, tensor in (
        ("x", x),
        ("gate_up_weight", gate_up_weight),
        ("down_weight", down_weight),
    ):
        check_float_up_to_32(name, tensor)
        check_rank(name, tensor, 2)
        check_same(name, tensor, "x", x)
    hidden_size, intermediate_size = down_weight.shape
    check(
        x.shape[1] == hidden_size,
        lambda: (
            f"x has shape {tuple(x.shape)}, expected {hidden_size} columns as down_weight has rows"
        ),
    )
    check(
        tuple(gate_up_weight.shape) == (2 * intermediate_size, hidden_size),
        lambda: (
            f"gate_up_weight has shape {tuple(gate_up_weight.shape)}, expected "
            f"{(2 * intermediate_size, hidden_size)} to match down_weight "
            f"{tuple(down_weight.shape)}"
        ),
    )
    if x.numel() == 0 or intermediate_size == 0:
        return torch.zeros_like(x)
    if x.is_cuda:
        from lite_llama.ops.fused_ffn import kernel

        return kernel.fused_ffn(x, gate_up_weight, down_weight)
    return reference.fused_ffn(x, gate_up_weight, down_weight)
