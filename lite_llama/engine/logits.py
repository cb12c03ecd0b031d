"""What a step computes."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Logits:
    """`values` float32 [num_rows, vocab] of a step.

    `in_place`: they lie at the start of a buffer that all such steps share, the next of which
    overwrites them, and rows of padding follow those that were asked for.
    """

    values: Tensor
    in_place: bool
