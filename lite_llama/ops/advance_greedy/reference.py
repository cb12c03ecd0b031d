"""advance_greedy in plain torch."""

import torch
from torch import Tensor


def advance_greedy(logits: Tensor, fields: Tensor, told: Tensor) -> None:
    advance_drawn(logits.max(dim=-1).indices, fields, told)


def advance_drawn(tokens: Tensor, fields: Tensor, told: Tensor) -> None:
    (rows,) = torch.nonzero(fields[3, : len(tokens)], as_tuple=True)
    told[fields[4, rows], rows] = tokens[rows]
    fields[0, rows] = tokens[rows]
    fields[1:4, rows] += 1
    fields[4, rows] ^= 1
