"""norm_linear in Triton: the shared product kernel, with the norm in its prologue."""

import torch
from torch import Tensor

from lite_llama.kernel_lib.decode_gemv import run_single
from lite_llama.kernel_lib.gemv_launch import GemvLaunch, choose_gemv


def norm_linear(
    x: Tensor,
    norm: Tensor,
    weight: Tensor,
    eps: float,
    bias: Tensor | None,
    launch: GemvLaunch | None,
) -> Tensor:
    y = torch.empty((len(x), weight.shape[0]), dtype=torch.float32, device=x.device)
    how = launch or choose_gemv(weight.shape[0], weight.shape[1], len(x))
    run_single(x, weight, y, how, norm=norm, eps=eps, bias=bias)
    return y
