"""Steps with prompts in them, padded to a few numbers of tokens, each recorded once and replayed.

Launched kernel by kernel, such a step of a small model is bound by the host: 128 tokens of
Llama-3.2-1B take an H100 14 ms. Inputs lie in buffers, as those of `cuda_graphs` do, and no
graph depends on lengths. A token of padding belongs to no sequence and its slot is −1; a sequence
of padding has length 0. Beyond the largest size the GPU is slower than its host.
"""

from bisect import bisect_left
from collections.abc import Sequence
from itertools import chain

import torch
from torch import Tensor

from lite_llama.cache.kv_cache import KVCache
from lite_llama.engine.batch import Inputs, Unread
from lite_llama.engine.config import EnginePlan
from lite_llama.engine.device_table import DeviceTable
from lite_llama.engine.recording import Recorded, destroy, record
from lite_llama.engine.upload import upload
from lite_llama.models.decoder import Decoder
from lite_llama.models.inputs import ForwardBatch

# Tokens of a step. Matrix products of few rows are bound by the weights: finer sizes gain nothing.
_SIZES = (16, 32, 64, 128, 192, 256, 384, 512, 640, 768, 1024, 1152, 1280, 1536, 2048)
MAX_PROMPTS = 32
# Decoding sequences beside the prompts: none, few (whose keys many programs share out), or all.
_FEW = 16


class PromptGraphs:
    """Recorded steps of one model, by (tokens, decoding sequences)."""

    def __init__(self, decoder: Decoder, kv_cache: KVCache, plan: EnginePlan) -> None:
        device, num_rows = plan.device, plan.max_num_seqs + MAX_PROMPTS
        self._decoder = decoder
        self._kv_cache = kv_cache
        self._plan = plan
        # Token ids, positions and slots; lengths and bounds; each lies together, for one copy.
        self._tokens = torch.zeros(3 * _SIZES[-1], dtype=torch.int64, device=device)
        self._counts = torch.zeros(num_rows + MAX_PROMPTS + 1, dtype=torch.int32, device=device)
        self._table = DeviceTable(num_rows, plan.max_blocks_per_seq, device)
        self._recorded: dict[tuple[int, int], Recorded] = {}
        self._pool = None if plan.enforce_eager else torch.cuda.graph_pool_handle()

    @staticmethod
    def fits(inputs: Inputs) -> bool:
        """Whether a step is small enough."""
        return len(inputs.token_ids) <= _SIZES[-1] and inputs.num_prompts <= MAX_PROMPTS

    def run(self, inputs: Inputs, unread: Unread | None) -> Tensor:
        """Hidden states [num_tokens, hidden] of a step that fits; the next run overwrites them.

        `unread`: the tokens at `inputs.unread_rows`, if there are any.
        """
        size = _SIZES[bisect_left(_SIZES, len(inputs.token_ids))]
        decodes = self._num_decodes(inputs.num_decode_seqs, size)
        if not self._plan.enforce_eager and (size, decodes) not in self._recorded:
            self._recorded[size, decodes] = self._record(size, decodes)
        self._write(inputs, unread, size, decodes)
        if self._plan.enforce_eager:
            hidden = self._forward(size, decodes)
        else:
            graph, hidden = self._recorded[size, decodes]
            graph.replay()
        return hidden[: len(inputs.token_ids)]

    def _num_decodes(self, asked: int, size: int) -> int:
        if asked == 0:
            return 0
        limit = self._plan.max_num_seqs
        return min(size, limit, _FEW if asked <= _FEW else limit)

    def _write(self, inputs: Inputs, unread: Unread | None, size: int, decodes: int) -> None:
        padding = size - len(inputs.token_ids)
        tokens = inputs.token_ids + [0] * padding + inputs.positions + [0] * padding
        tokens += inputs.slot_mapping + [-1] * padding
        asked, free = inputs.num_decode_seqs, MAX_PROMPTS - inputs.num_prompts
        counts = inputs.seq_lens[:asked] + [0] * (decodes - asked)
        counts += inputs.seq_lens[asked:] + [0] * free
        counts += inputs.cu_seqlens_q + inputs.cu_seqlens_q[-1:] * free
        of_decodes = self._table.changes(0, inputs.block_table[:asked])
        of_prompts = self._table.changes(decodes, inputs.block_table[asked:])
        places, blocks = of_decodes[0] + of_prompts[0], of_decodes[1] + of_prompts[1]
        # In one copy: to prepare it takes the host longer than the GPU takes for the bytes.
        drawn: Sequence[int] = [] if unread is None else unread.rows
        lists = (tokens, counts, places, blocks, inputs.unread_rows, drawn)
        whole = upload(list(chain(*lists)), torch.int64, self._plan.device)
        sent = torch.split(whole, [*map(len, lists)])
        self._tokens[: 3 * size].copy_(sent[0])
        self._counts[: len(counts)].copy_(sent[1])
        if places:
            self._table.apply(sent[2], sent[3])
        if unread is not None:
            self._tokens.index_copy_(0, sent[4], unread.drawn[sent[5]])

    def _record(self, size: int, decodes: int) -> Recorded:
        self._tokens.zero_()
        self._tokens[2 * size : 3 * size] = -1
        self._counts.zero_()
        return record(lambda: self._forward(size, decodes), self._pool, self._plan)

    def close(self) -> None:
        """Destroy the graphs."""
        destroy(self._recorded)

    def _forward(self, size: int, decodes: int) -> Tensor:
        token_ids, positions, slots = self._tokens[: 3 * size].view(3, size)
        num_rows = decodes + MAX_PROMPTS
        inputs = ForwardBatch(
            token_ids=token_ids,
            positions=positions,
            slot_mapping=slots,
            block_table=self._table.values[:num_rows],
            seq_lens=self._counts[:num_rows],
            cu_seqlens_q=self._counts[num_rows : num_rows + MAX_PROMPTS + 1],
            num_decode_seqs=decodes,
            max_q_len=size,
        )
        return self._decoder.hidden(inputs, self._kv_cache)
