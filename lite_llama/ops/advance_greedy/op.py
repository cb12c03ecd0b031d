"""The end of a greedy decode step: its tokens drawn, its inputs made those of the next step."""

import torch
from torch import Tensor

from lite_llama.errors import OperatorError
from lite_llama.kernel_lib.argmax_launch import MAX_COLUMNS
from lite_llama.kernel_lib.checks import (
    check,
    check_device,
    check_float_up_to_32,
    check_rank,
    check_shape,
    check_unit_stride,
)
from lite_llama.ops.advance_greedy import reference

NUM_FIELDS = 5


def advance_greedy(logits: Tensor, fields: Tensor, told: Tensor) -> None:
    """Draw the likeliest token of each row of `logits` [n, vocab] and go on to the next step.

    `fields` int64 [5, num_rows >= n], changed in place: token, position, cache slot, length and
    turn (0 or 1) of each row's sequence. The token drawn, as `argmax` finds it, becomes its token,
    and `told` int64 [2, num_rows] gets it at (turn, row): beside a GPU that is pinned memory, which
    the host may read once an event recorded after this has come. Position, slot and length grow by
    one, and the turn changes, so that the host has a step's time to read. Of a row of length 0,
    padding, nothing changes.

    The next slot is right within a block of the cache; at its end the caller writes the new one.
    """
    check_rank("logits", logits, 2)
    check_float_up_to_32("logits", logits)
    check_unit_stride("logits", logits)
    check_rank("fields", fields, 2)
    num_rows = fields.shape[1]
    check_shape("fields", fields, (NUM_FIELDS, num_rows))
    check_shape("told", told, (2, num_rows))
    check(
        len(logits) <= num_rows and 0 < logits.shape[1] <= MAX_COLUMNS,
        lambda: (
            f"logits has shape {tuple(logits.shape)}, expected [0..{num_rows}, 1..{MAX_COLUMNS}]"
        ),
    )
    for name, x in (("fields", fields), ("told", told)):
        if x.dtype != torch.int64 or not x.is_contiguous():
            raise OperatorError(
                f"{name} is {x.dtype} of strides {x.stride()}, expected whole int64"
            )
    check_device("fields", fields, "logits", logits)
    if len(logits) == 0:
        return
    if logits.is_cuda:
        from lite_llama.ops.advance_greedy import kernel

        kernel.advance_greedy(logits, fields, told)
        return
    reference.advance_greedy(logits, fields, told)
