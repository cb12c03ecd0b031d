"""norm_gate_up in Triton: a program owns a few gate rows and their up rows."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lite_llama.kernel_lib.decode_gemv import load_early, pair_rows, products, split_pairs, wait
from lite_llama.kernel_lib.decode_ring import run_ring
from lite_llama.kernel_lib.gemv_launch import GemvLaunch, choose_gemv
from lite_llama.kernel_lib.gpu import gpu_spec


@triton.jit
def norm_gate_up_kernel(
    x_ptr,
    norm_ptr,
    w_ptr,
    y_ptr,
    eps,
    M: tl.constexpr,
    INTER: tl.constexpr,
    K: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
    STAGES: tl.constexpr,
    OVERLAP: tl.constexpr,
    TRIGGER: tl.constexpr,
    PRELOAD: tl.constexpr,
    PREFETCH: tl.constexpr,
    GROUPS: tl.constexpr,
):
    """Grid (INTER / BLOCK_N / GROUPS,)."""
    pairs, which = pair_rows(BLOCK_N, GROUPS, INTER)
    early = load_early(
        norm_ptr, w_ptr, pairs + which * INTER,
        K, BLOCK_N, BLOCK_K, STAGES, GROUPS, OVERLAP, TRIGGER, PRELOAD, PREFETCH,
    )  # fmt: skip
    wait(OVERLAP)
    found = products(
        x_ptr, norm_ptr, early, eps, M, K, BLOCK_N, BLOCK_K, STAGES, GROUPS, OVERLAP, TRIGGER
    )
    first_row = tl.program_id(0) * (BLOCK_N * GROUPS)
    for group in tl.static_range(GROUPS):
        gate, up = split_pairs(found[group].to(w_ptr.dtype.element_ty).to(tl.float32))
        y = gate * tl.sigmoid(gate) * up
        rows = first_row + group * BLOCK_N + tl.arange(0, BLOCK_N)
        tokens = tl.arange(0, y.shape[1])
        inside = (rows < INTER)[:, None] & (tokens < M)[None, :]
        y_places = tokens[None, :] * INTER + rows[:, None]
        tl.store(y_ptr + y_places, y.to(y_ptr.dtype.element_ty), mask=inside)


def norm_gate_up(
    x: Tensor, norm: Tensor, weight: Tensor, eps: float, launch: GemvLaunch | None
) -> Tensor:
    inter, num_columns = weight.shape[0] // 2, weight.shape[1]
    how = launch or choose_gemv(inter, num_columns, len(x), pairs=True)
    y = torch.empty((len(x), inter), dtype=x.dtype, device=x.device)
    if how.is_ring(num_columns, weight.dtype, gpu_spec(x.device)):
        run_ring(x, weight, y, how, norm=norm, eps=eps, span=inter)
        return y
    groups = how.num_groups(inter)
    norm_gate_up_kernel[(triton.cdiv(inter, how.block_n * groups),)](
        x,
        norm,
        weight,
        y,
        eps,
        M=len(x),
        INTER=inter,
        K=num_columns,
        GROUPS=groups,
        **how.constants(num_columns, gpu_spec(x.device)),
    )
    return y
