"""norm_gate_up in Triton, for one token: a program owns a few gate rows and their up rows."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lite_llama.kernel_lib.decode_gemv import pair_rows, products, split_pairs
from lite_llama.kernel_lib.gemv_launch import GemvLaunch, choose_gemv
from lite_llama.kernel_lib.gpu import gpu_spec
from lite_llama.ops.norm_gate_up import mma


@triton.jit
def norm_gate_up_kernel(
    x_ptr,
    norm_ptr,
    w_ptr,
    y_ptr,
    eps,
    INTER: tl.constexpr,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    OVERLAP: tl.constexpr,
    TRIGGER: tl.constexpr,
    PRELOAD: tl.constexpr,
    PREFETCH: tl.constexpr,
):
    """Grid (INTER / BLOCK_N,)."""
    pairs, which = pair_rows(BLOCK_N, INTER)
    y = products(
        x_ptr, norm_ptr, w_ptr, pairs + which * INTER, eps,
        K, BLOCK_K, OVERLAP, TRIGGER, PRELOAD, PREFETCH,
    )  # fmt: skip
    gate, up = split_pairs(y.to(w_ptr.dtype.element_ty).to(tl.float32), BLOCK_N)
    y = gate * tl.sigmoid(gate) * up
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    tl.store(y_ptr + rows, y.to(y_ptr.dtype.element_ty), mask=rows < INTER)


def norm_gate_up(
    x: Tensor, norm: Tensor, weight: Tensor, eps: float, launch: GemvLaunch | None
) -> Tensor:
    inter, num_columns = weight.shape[0] // 2, weight.shape[1]
    how = launch or choose_gemv(inter, num_columns, len(x))
    y = torch.empty((len(x), inter), dtype=x.dtype, device=x.device)
    kernel = mma.norm_gate_up_kernel if how.num_stages else norm_gate_up_kernel
    kernel[(triton.cdiv(inter, how.block_n),)](
        x,
        norm,
        weight,
        y,
        eps,
        INTER=inter,
        K=num_columns,
        **how.constants(len(x), num_columns, gpu_spec(x.device)),
    )
    return y
