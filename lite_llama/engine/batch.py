"""From the scheduler's plan to the tensors of a forward pass."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import msgspec
import torch
from torch import Tensor

from lite_llama.engine.request import Request
from lite_llama.engine.scheduler import Scheduled
from lite_llama.engine.upload import upload
from lite_llama.models.inputs import ForwardBatch


@dataclass(frozen=True)
class Unread:
    """The last tokens of some requests of a plan, in its order, which only the device knows.

    They are `drawn`, int64 [n], at `rows`: a range where that is all of it in order.
    """

    drawn: Tensor
    rows: Sequence[int]

    @property
    def tokens(self) -> Tensor:
        """int64 [len(rows)], on the device; `drawn` itself where that is all of it in order."""
        if self.rows == range(len(self.drawn)):
            return self.drawn
        return self.drawn[upload(self.rows, torch.int64, self.drawn.device)]


class Inputs(msgspec.Struct, frozen=True, tag="forward"):
    """A forward pass in plain numbers, as they are sent to other ranks: see `ForwardBatch`.

    `block_table` has a row of any length for each sequence; `logits_rows` are the rows whose logits
    are wanted. Tokens that only a device knows are zeros in `token_ids`, and lie at `unread_rows`.
    """

    token_ids: list[int]
    positions: list[int]
    slot_mapping: list[int]
    seq_lens: list[int]
    cu_seqlens_q: list[int]
    block_table: list[list[int]]
    logits_rows: list[int]
    unread_rows: list[int]
    num_decode_seqs: int
    max_q_len: int

    @property
    def num_prompts(self) -> int:
        """Sequences with more than one token."""
        return len(self.cu_seqlens_q) - 1

    def tokens_on(self, device: torch.device, unread: Unread | None) -> Tensor:
        """`token_ids` as a tensor, int64, with `unread` as in `on`."""
        tokens = upload(self.token_ids, torch.int64, device)
        if unread is not None:
            rows = upload(self.unread_rows, torch.int64, device)
            tokens.index_copy_(0, rows, unread.tokens)
        return tokens

    def on(self, device: torch.device, unread: Unread | None) -> ForwardBatch:
        """The same as tensors; `unread` are the tokens at `unread_rows`."""
        width = max(map(len, self.block_table))
        table = [blocks + [0] * (width - len(blocks)) for blocks in self.block_table]
        return ForwardBatch(
            token_ids=self.tokens_on(device, unread),
            positions=upload(self.positions, torch.int64, device),
            slot_mapping=upload(self.slot_mapping, torch.int64, device),
            block_table=upload(table, torch.int32, device),
            seq_lens=upload(self.seq_lens, torch.int32, device),
            cu_seqlens_q=upload(self.cu_seqlens_q, torch.int32, device),
            num_decode_seqs=self.num_decode_seqs,
            max_q_len=self.max_q_len,
        )


class Rows:
    """Which row of a step each decoding sequence has: the one it had in the step before.

    The last ones fill the rows of those that have left. So what stays on a device for each row, its
    blocks above all, stays right, and a step sends what is new.
    """

    def __init__(self) -> None:
        self._requests: list[Request] = []

    def order(self, planned: list[Scheduled]) -> list[Scheduled]:
        """Single-token shares first, each in its row: they decode. The rest prefills."""
        prompts = [share for share in planned if share.num_new_tokens > 1]
        left = {share.request: share for share in planned if share.num_new_tokens == 1}
        found = [left.pop(request, None) for request in self._requests]
        free = [row for row, share in enumerate(found) if share is None]
        new = list(left.values())
        found[len(found) :] = new[len(free) :]
        for row, share in zip(free, new, strict=False):
            found[row] = share
        for row in reversed(free[len(new) :]):
            last = found.pop()
            if row < len(found):
                found[row] = last
        rows = [share for share in found if share is not None]
        self._requests = [share.request for share in rows]
        return rows + prompts


def only_decodes(planned: list[Scheduled]) -> bool:
    """Whether every share of an ordered plan is one token whose successor is drawn, and nothing
    else is asked for."""
    return planned[-1].num_new_tokens == 1 and all(
        scheduled.draws_token and not wants_prompt_rows(scheduled) for scheduled in planned
    )


def build(planned: list[Scheduled], block_size: int, *, all_logits: bool = False) -> Inputs:
    """Inputs for an ordered, non-empty plan.

    Logits are wanted of the last row of each request that draws a token, of every row of a
    request that wants prompt log-probabilities, and with `all_logits` of every row.
    """
    singles = [share for share in planned if share.num_new_tokens == 1]
    decodes = [share.request for share in singles]
    num_decodes = len(decodes)
    places = [request.num_computed_tokens for request in decodes]
    inputs = Inputs(
        # An unread token is all that is pending.
        token_ids=[
            0 if request.num_unread_tokens else request.tokens(place, place + 1)[0]
            for request, place in zip(decodes, places, strict=True)
        ],
        positions=places,
        slot_mapping=slots_at([one.blocks for one in decodes], places, block_size),
        seq_lens=[place + 1 for place in places],
        cu_seqlens_q=[num_decodes],
        block_table=[share.request.blocks for share in planned],
        logits_rows=[
            row
            for row, share in enumerate(singles)
            if share.draws_token or all_logits or wants_prompt_rows(share)
        ],
        unread_rows=[row for row, request in enumerate(decodes) if request.num_unread_tokens],
        num_decode_seqs=num_decodes,
        max_q_len=max((share.num_new_tokens for share in planned[num_decodes:]), default=0),
    )
    for scheduled in planned[num_decodes:]:
        request, count = scheduled.request, scheduled.num_new_tokens
        start, first_row = request.num_computed_tokens, len(inputs.token_ids)
        positions = range(start, start + count)
        wanted = range(first_row, first_row + count)
        inputs.logits_rows.extend(wanted if all_logits else wanted_rows(scheduled, first_row))
        inputs.token_ids.extend(request.tokens(start, start + count))
        inputs.positions.extend(positions)
        inputs.slot_mapping.extend(slots_of(request.blocks, positions, block_size))
        inputs.seq_lens.append(start + count)
        inputs.cu_seqlens_q.append(inputs.cu_seqlens_q[-1] + count)
    return inputs


def slots_at(tables: Iterable[list[int]], positions: Iterable[int], block_size: int) -> list[int]:
    """Cache slots of one position of each sequence, from the sequences' blocks."""
    return [
        blocks[place // block_size] * block_size + place % block_size
        for blocks, place in zip(tables, positions, strict=True)
    ]


def slots_of(blocks: list[int], positions: range, block_size: int) -> list[int]:
    """Cache slots of a sequence's positions."""
    return [blocks[place // block_size] * block_size + place % block_size for place in positions]


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
        not request.is_plain
        and request.params.prompt_logprobs is not None
        and not request.output_token_ids
        and request.num_computed_tokens < len(request.prompt_token_ids)
    )
