"""From the scheduler's plan to the tensors of a forward pass."""

import msgspec
import torch
from torch import Tensor

from lite_llama.engine.scheduler import Scheduled
from lite_llama.models.inputs import ForwardBatch


def order(planned: list[Scheduled]) -> list[Scheduled]:
    """Single-token shares first: they decode, the rest prefills."""
    return sorted(planned, key=lambda scheduled: scheduled.num_new_tokens > 1)


def only_decodes(planned: list[Scheduled]) -> bool:
    """Whether every share is one token whose successor is drawn, and nothing else is asked for."""
    return all(
        scheduled.num_new_tokens == 1 and scheduled.draws_token and not wants_prompt_rows(scheduled)
        for scheduled in planned
    )


class Inputs(msgspec.Struct, frozen=True, tag="forward"):
    """A forward pass in plain numbers, as they are sent to other ranks: see `ForwardBatch`."""

    token_ids: list[int]
    positions: list[int]
    slot_mapping: list[int]
    block_table: list[list[int]]
    seq_lens: list[int]
    cu_seqlens_q: list[int]
    logits_rows: list[int] | None
    num_decode_seqs: int
    max_q_len: int

    def on(self, device: torch.device) -> ForwardBatch:
        """The same as tensors."""

        def tensor(values: list[int] | list[list[int]], dtype: torch.dtype) -> Tensor:
            return torch.tensor(values, dtype=dtype).to(device, non_blocking=True)

        rows = self.logits_rows
        return ForwardBatch(
            token_ids=tensor(self.token_ids, torch.int64),
            positions=tensor(self.positions, torch.int64),
            slot_mapping=tensor(self.slot_mapping, torch.int64),
            block_table=tensor(self.block_table, torch.int32),
            seq_lens=tensor(self.seq_lens, torch.int32),
            cu_seqlens_q=tensor(self.cu_seqlens_q, torch.int32),
            logits_rows=None if rows is None else tensor(rows, torch.int64),
            num_decode_seqs=self.num_decode_seqs,
            max_q_len=self.max_q_len,
        )


def build(planned: list[Scheduled], block_size: int, *, all_logits: bool = False) -> Inputs:
    """Inputs for an ordered, non-empty plan.

    Logits are computed for the last row of each request that draws a token, for every row of a
    request that wants prompt log-probabilities, and with `all_logits` for every row.
    """
    token_ids: list[int] = []
    positions: list[int] = []
    slots: list[int] = []
    logits_rows: list[int] = []
    seq_lens: list[int] = []
    bounds = [0]
    for scheduled in planned:
        request, count = scheduled.request, scheduled.num_new_tokens
        start = request.num_computed_tokens
        logits_rows += wanted_rows(scheduled, len(token_ids))
        token_ids += request.tokens(start, start + count)
        positions += range(start, start + count)
        slots += [
            request.blocks[position // block_size] * block_size + position % block_size
            for position in range(start, start + count)
        ]
        seq_lens.append(start + count)
        if count > 1:
            bounds.append(bounds[-1] + count)
    num_decodes = len(planned) - len(bounds) + 1
    prefills = planned[num_decodes:]
    width = max(len(scheduled.request.blocks) for scheduled in planned)
    table = [
        scheduled.request.blocks + [0] * (width - len(scheduled.request.blocks))
        for scheduled in planned
    ]
    return Inputs(
        token_ids=token_ids,
        positions=positions,
        slot_mapping=slots,
        block_table=table,
        seq_lens=seq_lens,
        cu_seqlens_q=bounds,
        logits_rows=None if all_logits else logits_rows,
        num_decode_seqs=num_decodes,
        max_q_len=max((scheduled.num_new_tokens for scheduled in prefills), default=0),
    )


def wanted_rows(scheduled: Scheduled, first_row: int) -> range:
    """Rows of a request's share, counted from `first_row`, whose logits are needed."""
    end = first_row + scheduled.num_new_tokens
    if wants_prompt_rows(scheduled):
        return range(first_row, end)
    return range(end - 1, end) if scheduled.draws_token else range(0)


def wants_prompt_rows(scheduled: Scheduled) -> bool:
    """Whether this share computes prompt rows whose log-probabilities were asked for."""
    request = scheduled.request
    return (
        request.params.prompt_logprobs is not None
        and not request.output_token_ids
        and request.num_computed_tokens < len(request.prompt_token_ids)
    )
