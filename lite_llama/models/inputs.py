"""Everything a forward pass reads besides weights and cache."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class ForwardBatch:
    """One step's tokens, sequence after sequence: first those that decode, then those that prefill.

    All tensors are on the model's device.
    """

    token_ids: Tensor  # int64 [num_tokens]
    positions: Tensor  # int64 [num_tokens]
    slot_mapping: Tensor  # int64 [num_tokens], −1 = padding
    block_table: Tensor  # int32 [num_seqs, max_blocks]
    seq_lens: Tensor  # int32 [num_seqs], keys a sequence, this step's tokens included
    cu_seqlens_q: Tensor  # int32 [num_prefill_seqs + 1], rows of token_ids
    num_decode_seqs: int  # leading sequences with exactly one token each; length 0 = padding
    max_q_len: int  # longest prefill of the step, 0 without one
