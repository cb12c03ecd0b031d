"""norm_linear in Triton: the shared matrix-vector kernel, with the norm in its prologue."""

import torch
from torch import Tensor

from lite_llama.kernel_lib.decode_gemv import run_single


def norm_linear(x: Tensor, norm: Tensor, weight: Tensor, eps: float, *, overlap: bool) -> Tensor:
    y = torch.empty((1, weight.shape[0]), dtype=torch.float32, device=x.device)
    run_single(x, weight, y, norm=norm, eps=eps, overlap=overlap)
    return y
