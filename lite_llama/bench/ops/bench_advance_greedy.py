"""advance_greedy: one read a logit, and a few numbers a row."""

import torch
from torch import Tensor

from lite_llama.bench.harness import Case
from lite_llama.ops import advance_greedy

_VOCAB = 128256


def cases(device: torch.device, dtype: torch.dtype) -> list[Case]:
    on_gpu = device.type == "cuda"
    return [_case(device, dtype, rows) for rows in ((1, 8, 256) if on_gpu else (1, 8))]


def _case(device: torch.device, dtype: torch.dtype, rows: int) -> Case:
    def make_inputs() -> tuple[Tensor, ...]:
        logits = torch.randn(rows, _VOCAB, device=device, dtype=dtype)
        # One largest value a row: torch orders ties as it likes.
        logits.scatter_(1, torch.randint(_VOCAB, (rows, 1), device=device), 100.0)
        fields = torch.randint(1, 1000, (5, rows), device=device)
        fields[4] = torch.arange(rows, device=device) % 2
        return logits, fields, torch.zeros(2, rows, dtype=torch.int64, device=device)

    def plain(logits: Tensor, fields: Tensor, told: Tensor) -> None:
        tokens = logits.max(dim=-1).indices
        told.scatter_(0, fields[4:], tokens[None])
        fields[0] = tokens
        fields[1:4] += 1
        fields[4] ^= 1

    return Case(
        name=f"{rows}x{_VOCAB}",
        dtype=dtype,
        make_inputs=make_inputs,
        contenders={"torch": plain, "lite_llama": advance_greedy},
        num_bytes=rows * (_VOCAB * dtype.itemsize + 10 * 8),
        limit=0.0,
        in_place=True,
    )
