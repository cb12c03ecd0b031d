"""swiglu in Triton: one program a piece of a row; gate and up may lie in one buffer."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lite_llama.kernel_lib.gpu import gpu_spec
from lite_llama.kernel_lib.pieces import piece_of_row
from lite_llama.kernel_lib.row_launch import choose_piece_launch
from lite_llama.kernel_lib.rows import as_fewest_rows, ceil_div


@triton.jit
def _swiglu(
    gate_ptr,
    up_ptr,
    out_ptr,
    gate_row_stride,
    up_row_stride,
    n,
    PIECES: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row, start = piece_of_row(PIECES, BLOCK)
    columns = tl.arange(0, BLOCK)
    mask = columns < n - start
    gate_ptr += row * gate_row_stride + start
    up_ptr += row * up_row_stride + start
    gate = tl.load(gate_ptr + columns, mask=mask, other=0.0).to(tl.float32)
    up = tl.load(up_ptr + columns, mask=mask, other=0.0).to(tl.float32)
    out = gate / (1.0 + tl.exp(-gate)) * up
    tl.store(out_ptr + row * n + start + columns, out.to(out_ptr.dtype.element_ty), mask=mask)


def swiglu(gate: Tensor, up: Tensor) -> Tensor:
    """silu(gate) · up for gate and up [..., n] with at least one element."""
    out = torch.empty(gate.shape, dtype=gate.dtype, device=gate.device)
    gate, up = as_fewest_rows(gate, up)
    num_rows, n = gate.shape
    launch = choose_piece_launch(num_rows, n, gate.element_size(), gpu_spec(gate.device))
    pieces = ceil_div(n, launch.block)
    _swiglu[(num_rows * pieces,)](
        gate,
        up,
        out,
        gate.stride(0),
        up.stride(0),
        n,
        PIECES=pieces if num_rows > 1 else 0,
        BLOCK=launch.block,
        num_warps=launch.num_warps,
    )
    return out
