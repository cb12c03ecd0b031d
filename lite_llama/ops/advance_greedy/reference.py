"""advance_greedy in plain torch."""

import torch
from torch import Tensor


def advance_greedy(logits: Tensor, fields: Tensor, told: Tensor) -> None:
    (rows,) = torch.nonzero(fields[3, : len(logits)], as_tuple=True)
    tokens = logits[rows].max(dim=-1).indices
    told[fields[4, rows], rows] = tokens
    fields[0, rows] = tokens
    fields[1:4, rows] += 1
    fields[4, rows] ^= 1
