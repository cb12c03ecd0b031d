"""The end of a decode step: its tokens drawn or given, its inputs made those of the next step."""

import torch
from torch import Tensor

from lite_llama.errors import OperatorError
from lite_llama.kernel_lib.argmax_launch import MAX_COLUMNS
from lite_llama.kernel_lib.checks import (
    check,
    check_device,
    check_float_up_to_32,
    check_integer,
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
    num_rows = _check_fields(fields, told, "logits", logits)
    check(
        len(logits) <= num_rows and 0 < logits.shape[1] <= MAX_COLUMNS,
        lambda: (
            f"logits has shape {tuple(logits.shape)}, expected [0..{num_rows}, 1..{MAX_COLUMNS}]"
        ),
    )
    if len(logits) == 0:
        return
    if logits.is_cuda:
        from lite_llama.ops.advance_greedy import kernel

        kernel.advance_greedy(logits, fields, told)
        return
    reference.advance_greedy(logits, fields, told)


def advance_drawn(tokens: Tensor, fields: Tensor, told: Tensor) -> None:
    """Go on to the next step with `tokens` int64 [n], drawn before; else as `advance_greedy`."""
    check_rank("tokens", tokens, 1)
    check_integer("tokens", tokens)
    check_unit_stride("tokens", tokens)
    num_rows = _check_fields(fields, told, "tokens", tokens)
    check(
        len(tokens) <= num_rows,
        lambda: f"tokens has shape {tuple(tokens.shape)}, expected [0..{num_rows}]",
    )
    if len(tokens) == 0:
        return
    if tokens.is_cuda:
        from lite_llama.ops.advance_greedy import kernel

        kernel.advance_drawn(tokens, fields, told)
        return
    reference.advance_drawn(tokens, fields, told)


def _check_fields(fields: Tensor, told: Tensor, name: str, given: Tensor) -> int:
    """How many rows they have, beside what a step is given."""
    check_rank("fields", fields, 2)
    num_rows = fields.shape[1]
    check_shape("fields", fields, (NUM_FIELDS, num_rows))
    check_shape("told", told, (2, num_rows))
    for field, x in (("fields", fields), ("told", told)):
        if x.dtype != torch.int64 or not x.is_contiguous():
            raise OperatorError(
                f"{field} is {x.dtype} of strides {x.stride()}, expected whole int64"
            )
    check_device("fields", fields, name, given)
    return num_rows
