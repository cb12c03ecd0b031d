"""embedding in Triton: one program a piece of a gathered row.

It waits for all that came before, as any plain launch does, but lets a dependent one behind it
start at once: a decode step's first weights are on their way while its tokens' rows are read.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents

from lite_llama.kernel_lib.gpu import gpu_spec
from lite_llama.kernel_lib.rows import ceil_div, next_power_of_2

# 128 threads with two 16-byte loads each.
_BYTES_PER_PROGRAM = 128 * 16 * 2


@triton.jit
def _embedding(
    indices_ptr, table_ptr, out_ptr, table_row_stride, n, BLOCK: tl.constexpr, HAS_PDL: tl.constexpr
):
    if HAS_PDL:
        gdc_launch_dependents()
    pieces = tl.cdiv(n, BLOCK)
    row = (tl.program_id(0) // pieces).to(tl.int64)
    columns = (tl.program_id(0) % pieces) * BLOCK + tl.arange(0, BLOCK)
    mask = columns < n
    index = tl.load(indices_ptr + row).to(tl.int64)
    values = tl.load(table_ptr + index * table_row_stride + columns, mask=mask)
    tl.store(out_ptr + row * n + columns, values, mask=mask)


def embedding(indices: Tensor, table: Tensor) -> Tensor:
    """Rows `indices` of `table`, with at least one element."""
    n = table.shape[1]
    out = torch.empty(*indices.shape, n, dtype=table.dtype, device=table.device)
    itemsize = table.element_size()
    block = min(next_power_of_2(n), _BYTES_PER_PROGRAM // itemsize)
    _embedding[(indices.numel() * ceil_div(n, block),)](
        indices.contiguous(),
        table,
        out,
        table.stride(0),
        n,
        BLOCK=block,
        HAS_PDL=gpu_spec(table.device).has_pdl,
        num_warps=max(1, min(4, block * itemsize // 1024)),
    )
    return out
