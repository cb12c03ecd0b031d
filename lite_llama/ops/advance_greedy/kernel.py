"""advance_greedy in Triton: argmax's two kernels, the second of which moves the fields on.

All are dependent launches, whatever stands before them, and wait first thing: between two steps of
a small model the time that a launch takes is all the time there is.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from lite_llama.kernel_lib.argmax_launch import choose_argmax
from lite_llama.kernel_lib.gpu import gpu_spec
from lite_llama.kernel_lib.ordered_keys import best_of_piece, index_of


@triton.jit
def _best_of_pieces(
    logits_ptr, best_ptr, row_stride, vocab, BLOCK: tl.constexpr, OVERLAP: tl.constexpr
):
    """Grid: (pieces, rows)."""
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()
    row_ptr = logits_ptr + tl.program_id(1).to(tl.int64) * row_stride
    best = best_of_piece(row_ptr, tl.program_id(0) * BLOCK, vocab, BLOCK)
    tl.store(best_ptr + tl.program_id(1) * tl.num_programs(0) + tl.program_id(0), best)


@triton.jit
def _advance(
    best_ptr, fields_ptr, told_ptr, num_rows, pieces, BLOCK: tl.constexpr, OVERLAP: tl.constexpr
):
    """Grid: (rows,)."""
    row = tl.program_id(0)
    fields = _fields(fields_ptr, num_rows, row)
    if OVERLAP:
        gdc_wait()
    piece = tl.arange(0, BLOCK)
    best = tl.load(best_ptr + row * pieces + piece, mask=piece < pieces, other=0)
    _move_on(index_of(tl.max(best, axis=0)), fields, fields_ptr, told_ptr, num_rows, row)


@triton.jit
def _advance_drawn(tokens_ptr, fields_ptr, told_ptr, num_rows, OVERLAP: tl.constexpr):
    """Grid: (rows,)."""
    row = tl.program_id(0)
    fields = _fields(fields_ptr, num_rows, row)
    if OVERLAP:
        gdc_wait()
    _move_on(tl.load(tokens_ptr + row), fields, fields_ptr, told_ptr, num_rows, row)


@triton.jit
def _fields(fields_ptr, num_rows, row):
    """(position, slot, length, turn), which no kernel of this step writes: read before the wait."""
    field_ptr = fields_ptr + row
    position = tl.load(field_ptr + num_rows)
    slot = tl.load(field_ptr + 2 * num_rows)
    length = tl.load(field_ptr + 3 * num_rows)
    return position, slot, length, tl.load(field_ptr + 4 * num_rows)


@triton.jit
def _move_on(token, fields, fields_ptr, told_ptr, num_rows, row):
    position, slot, length, turn = fields
    field_ptr = fields_ptr + row
    real = length > 0
    tl.store(told_ptr + turn * num_rows + row, token, mask=real)
    tl.store(field_ptr, token, mask=real)
    tl.store(field_ptr + num_rows, position + 1, mask=real)
    tl.store(field_ptr + 2 * num_rows, slot + 1, mask=real)
    tl.store(field_ptr + 3 * num_rows, length + 1, mask=real)
    tl.store(field_ptr + 4 * num_rows, turn ^ 1, mask=real)


def advance_greedy(logits: Tensor, fields: Tensor, told: Tensor) -> None:
    """`logits` with at least one row, of 1 to MAX_COLUMNS values."""
    count, vocab = logits.shape
    overlap = gpu_spec(logits.device).has_pdl
    launch = choose_argmax(vocab)
    best = torch.empty(count * launch.splits, dtype=torch.int64, device=logits.device)
    _best_of_pieces[(launch.splits, count)](
        logits,
        best,
        logits.stride(0),
        vocab,
        BLOCK=launch.block,
        OVERLAP=overlap,
        num_warps=launch.num_warps,
        launch_pdl=overlap,
    )
    _advance[(count,)](
        best,
        fields,
        told,
        fields.shape[1],
        launch.splits,
        BLOCK=launch.joining_block,
        OVERLAP=overlap,
        num_warps=launch.joining_warps,
        launch_pdl=overlap,
    )


def advance_drawn(tokens: Tensor, fields: Tensor, told: Tensor) -> None:
    """`tokens`: at least one."""
    overlap = gpu_spec(tokens.device).has_pdl
    _advance_drawn[(len(tokens),)](
        tokens, fields, told, fields.shape[1], OVERLAP=overlap, num_warps=1, launch_pdl=overlap
    )
