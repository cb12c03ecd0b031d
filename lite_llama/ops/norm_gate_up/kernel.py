"""norm_gate_up in Triton: a program owns a few gate rows and their up rows."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lite_llama.kernel_lib.decode_gemv import can_overlap, choose_gemv, pair_products


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
):
    """Grid (INTER / BLOCK_N,)."""
    rows = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    row_ok = rows < INTER
    gate, up = pair_products(
        x_ptr, norm_ptr, w_ptr, rows, rows + INTER, row_ok, eps,
        K, BLOCK_N, BLOCK_K, INTER % BLOCK_N == 0, OVERLAP,
    )  # fmt: skip
    gate = gate.to(w_ptr.dtype.element_ty).to(tl.float32)
    up = up.to(w_ptr.dtype.element_ty).to(tl.float32)
    y = gate * tl.sigmoid(gate) * up
    tl.store(y_ptr + rows, y.to(y_ptr.dtype.element_ty), mask=row_ok)


def norm_gate_up(x: Tensor, norm: Tensor, weight: Tensor, eps: float, *, overlap: bool) -> Tensor:
    inter, num_columns = weight.shape[0] // 2, weight.shape[1]
    how = choose_gemv(inter, num_columns)
    overlap = can_overlap(x, overlap=overlap)
    y = torch.empty((1, inter), dtype=x.dtype, device=x.device)
    norm_gate_up_kernel[(triton.cdiv(inter, how.block_n),)](
        x,
        norm,
        weight,
        y,
        eps,
        INTER=inter,
        K=num_columns,
        BLOCK_N=how.block_n,
        BLOCK_K=how.block_k,
        OVERLAP=overlap,
        num_warps=how.num_warps,
        launch_pdl=overlap,
    )
    return y
