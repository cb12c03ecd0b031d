"""From the scheduler's plan to the tensors of a forward pass."""

from dataclasses import dataclass, replace

import torch

from lite_llama.engine.scheduler import Scheduled
from lite_llama.engine.upload import upload
from lite_llama.models.inputs import ForwardBatch


@dataclass(frozen=True)
class Rows:
    """What a step reads, in host values: `ForwardBatch` before it is on a device, or padded.

    `bounds` are cu_seqlens_q; `table` has a row of any length for each sequence; `logits` are the
    rows whose logits are wanted.
    """

    token_ids: list[int]
    positions: list[int]
    slots: list[int]
    seq_lens: list[int]
    bounds: list[int]
    table: list[list[int]]
    logits: list[int]
    num_decodes: int
    max_q_len: int


def order(planned: list[Scheduled]) -> list[Scheduled]:
    """Single-token shares first: they decode, the rest prefills."""
    return sorted(planned, key=lambda scheduled: scheduled.num_new_tokens > 1)


def only_decodes(planned: list[Scheduled]) -> bool:
    """Whether every share is one token whose successor is drawn, and nothing else is asked for."""
    return all(
        scheduled.num_new_tokens == 1 and scheduled.draws_token and not wants_prompt_rows(scheduled)
        for scheduled in planned
    )


def describe(planned: list[Scheduled], block_size: int, *, all_logits: bool = False) -> Rows:
    """The rows of an ordered, non-empty plan.

    Logits are wanted of the last row of each request that draws a token, of every row of a
    request that wants prompt log-probabilities, and with `all_logits` of every row.
    """
    num_decodes = sum(scheduled.num_new_tokens == 1 for scheduled in planned)
    rows = Rows([], [], [], [], [num_decodes], [], [], num_decodes, 0)
    longest = 0
    for scheduled in planned:
        request, count = scheduled.request, scheduled.num_new_tokens
        start = request.num_computed_tokens
        first_row, positions = len(rows.token_ids), range(start, start + count)
        wanted = range(first_row, first_row + count)
        rows.logits.extend(wanted if all_logits else wanted_rows(scheduled, first_row))
        rows.token_ids.extend(request.tokens(start, start + count))
        rows.positions.extend(positions)
        rows.slots.extend(slots_of(request.blocks, positions, block_size))
        rows.seq_lens.append(start + count)
        rows.table.append(request.blocks)
        if count > 1:
            rows.bounds.append(rows.bounds[-1] + count)
            longest = max(longest, count)
    return replace(rows, max_q_len=longest)


def slots_of(blocks: list[int], positions: range, block_size: int) -> list[int]:
    """Cache slots of a sequence's positions."""
    return [blocks[place // block_size] * block_size + place % block_size for place in positions]


def build(rows: Rows, device: torch.device) -> ForwardBatch:
    """The same on a device."""
    return ForwardBatch(
        token_ids=upload(rows.token_ids, torch.int64, device),
        positions=upload(rows.positions, torch.int64, device),
        slot_mapping=upload(rows.slots, torch.int64, device),
        block_table=upload(rectangle(rows.table), torch.int32, device),
        seq_lens=upload(rows.seq_lens, torch.int32, device),
        cu_seqlens_q=upload(rows.bounds, torch.int32, device),
        num_decode_seqs=rows.num_decodes,
        max_q_len=rows.max_q_len,
    )


def rectangle(table: list[list[int]]) -> list[list[int]]:
    """Rows of block numbers filled up with zeros to the longest."""
    width = max(map(len, table))
    return [blocks + [0] * (width - len(blocks)) for blocks in table]


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
