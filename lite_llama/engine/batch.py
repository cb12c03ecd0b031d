"""From the scheduler's plan to the tensors of a forward pass."""

import msgspec
import torch
from torch import Tensor

from lite_llama.engine.scheduler import Scheduled
from lite_llama.engine.upload import upload
from lite_llama.models.inputs import ForwardBatch


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

    def tokens_on(self, device: torch.device, unread: Tensor | None) -> Tensor:
        """`token_ids` as a tensor, int64, with `unread` as in `on`."""
        tokens = upload(self.token_ids, torch.int64, device)
        self.put_unread(tokens, unread)
        return tokens

    def put_unread(self, tokens: Tensor, unread: Tensor | None) -> None:
        """Write `unread`, if there are such tokens, where they lie among `tokens`."""
        if unread is not None:
            rows = upload(self.unread_rows, torch.int64, tokens.device)
            tokens.index_copy_(0, rows, unread)

    def on(self, device: torch.device, unread: Tensor | None) -> ForwardBatch:
        """The same as tensors; `unread` int64 [len(unread_rows)] are the tokens at those rows."""
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


def order(planned: list[Scheduled]) -> list[Scheduled]:
    """Single-token shares first: they decode, the rest prefills."""
    return sorted(planned, key=lambda scheduled: scheduled.num_new_tokens > 1)


def only_decodes(planned: list[Scheduled]) -> bool:
    """Whether every share is one token whose successor is drawn, and nothing else is asked for."""
    return all(
        scheduled.num_new_tokens == 1 and scheduled.draws_token and not wants_prompt_rows(scheduled)
        for scheduled in planned
    )


def build(planned: list[Scheduled], block_size: int, *, all_logits: bool = False) -> Inputs:
    """Inputs for an ordered, non-empty plan.

    Logits are wanted of the last row of each request that draws a token, of every row of a
    request that wants prompt log-probabilities, and with `all_logits` of every row.
    """
    num_decodes = sum(scheduled.num_new_tokens == 1 for scheduled in planned)
    inputs = Inputs(
        [], [], [], [], [num_decodes], [], [], [], num_decodes,
        max_q_len=max((share.num_new_tokens for share in planned[num_decodes:]), default=0),
    )  # fmt: skip
    for scheduled in planned:
        request, count = scheduled.request, scheduled.num_new_tokens
        start = request.num_computed_tokens
        first_row, positions = len(inputs.token_ids), range(start, start + count)
        wanted = range(first_row, first_row + count)
        inputs.logits_rows.extend(wanted if all_logits else wanted_rows(scheduled, first_row))
        if request.num_unread_tokens:  # then it is all that is pending
            inputs.unread_rows.append(first_row)
            inputs.token_ids.append(0)
        else:
            inputs.token_ids.extend(request.tokens(start, start + count))
        inputs.positions.extend(positions)
        inputs.slot_mapping.extend(slots_of(request.blocks, positions, block_size))
        inputs.seq_lens.append(start + count)
        inputs.block_table.append(request.blocks)
        if count > 1:
            inputs.cu_seqlens_q.append(inputs.cu_seqlens_q[-1] + count)
    return inputs


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
        request.params.prompt_logprobs is not None
        and not request.output_token_ids
        and request.num_computed_tokens < len(request.prompt_token_ids)
    )
