"""How a decode step ends whose graph draws its tokens."""

from collections.abc import Callable, Hashable
from typing import NamedTuple

from torch import Tensor

from lite_llama import ops


class GraphDraw(NamedTuple):
    """`advance(logits, fields, told)` launches what draws the tokens of a step and goes on to the
    next, as `ops.advance_greedy` does. Draws of one `kind` launch the same: they share a graph."""

    kind: Hashable
    advance: Callable[[Tensor, Tensor, Tensor], None]


GREEDY = GraphDraw("greedy", ops.advance_greedy)
