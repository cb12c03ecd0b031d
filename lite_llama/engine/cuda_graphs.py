"""Decode steps recorded once per batch size and replayed: the host launches one graph a step.

Inputs lie in buffers that the graphs read: token ids, positions, cache slots, lengths and the
block table. So no graph depends on lengths or on which blocks a sequence owns. A batch is padded
to the next recorded size with rows of length 0 whose slot is −1. Graphs are recorded when a size is
first needed and share one memory pool.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from lite_llama import ops
from lite_llama.cache.kv_cache import KVCache
from lite_llama.engine.config import EnginePlan
from lite_llama.engine.device_table import DeviceTable
from lite_llama.engine.request import Request
from lite_llama.engine.upload import upload
from lite_llama.models import decode_chain
from lite_llama.models.chain_launches import ChainLaunches
from lite_llama.models.decoder import Decoder
from lite_llama.models.inputs import ForwardBatch

_NUM_FIELDS = 4  # token id, position, slot, length


# The launches of a step's fused chain by its batch size; None: the separate operators.
Choose = Callable[[Decoder, int], ChainLaunches | None]


class DecodeGraphs:
    """Recorded decode steps of one model.

    Every graph reads `fields` int64 [4, max_num_seqs] (token ids, positions, slots, lengths) and
    `table`, which has a row a sequence.
    """

    def __init__(
        self,
        decoder: Decoder,
        kv_cache: KVCache,
        plan: EnginePlan,
        choose: Choose = decode_chain.engine_launches,
    ) -> None:
        device, rows = plan.device, plan.max_num_seqs
        self._decoder = decoder
        self._kv_cache = kv_cache
        self._plan = plan
        self._sizes = [size for size in (1, 2, 4) if size < rows] + [*range(8, rows, 8), rows]
        # Now, so that a bad table of launches is found before any step.
        self._launches = {size: choose(decoder, size) for size in self._sizes}
        self.fields = torch.zeros((_NUM_FIELDS, rows), dtype=torch.int64, device=device)
        self.table = DeviceTable(rows, plan.max_blocks_per_seq, device)
        # A copy to the device reads its source later: two sources take turns, and a step is
        # launched only after the one before the last has been read back.
        self._staging = [
            torch.zeros((_NUM_FIELDS - 1, rows), dtype=torch.int64, pin_memory=True)
            for _ in range(2)
        ]
        self._turn = 0
        # By size, and whether the greedy token is drawn within the graph.
        self._recorded: dict[tuple[int, bool], tuple[torch.cuda.CUDAGraph, Tensor]] = {}
        self._drawn: Tensor | None = None  # what the last graph left in the token field
        self._pool = torch.cuda.graph_pool_handle()
        # A pool whose graphs are all gone can record no other: the first one stays.
        self._first: torch.cuda.CUDAGraph | None = None

    def launch(
        self,
        requests: list[Request],
        positions: list[int],
        token_ids: list[int] | Tensor,
        *,
        greedy: bool = False,
    ) -> Tensor:
        """Compute one token of each request: logits float32 [n, vocab], or the likeliest int64 [n].

        `token_ids` and `positions` of those tokens. Ids may still be on the device, int64 [n]:
        drawn by a step that the host has not read. The result is overwritten by the next launch
        of the same size.
        """
        count = len(requests)
        size = next(size for size in self._sizes if size >= count)
        if (size, greedy) not in self._recorded:
            recorded = self.record(size, self._launches[size], greedy=greedy)
            self._recorded[size, greedy] = recorded
            self._drawn = None
        self.table.write(0, [request.blocks for request in requests])
        self._write_fields(requests, positions, size)
        if token_ids is not self._drawn:
            if not isinstance(token_ids, Tensor):
                token_ids = upload(token_ids, torch.int64, self._plan.device)
            self.fields[0, :count].copy_(token_ids)
        graph, result = self._recorded[size, greedy]
        graph.replay()
        result = result[:count]
        self._drawn = result if greedy else None
        return result

    def _write_fields(self, requests: list[Request], positions: list[int], size: int) -> None:
        block_size = self._plan.block_size
        padding = size - len(requests)
        slots = [
            request.blocks[position // block_size] * block_size + position % block_size
            for request, position in zip(requests, positions, strict=True)
        ]
        staging = self._staging[self._turn]
        self._turn = 1 - self._turn
        rows = [
            positions + [0] * padding,
            slots + [-1] * padding,
            [position + 1 for position in positions] + [0] * padding,
        ]
        staging[:, :size] = torch.tensor(rows)
        self.fields[1:].copy_(staging, non_blocking=True)

    def record(
        self, size: int, launches: ChainLaunches | None, *, greedy: bool = False
    ) -> tuple[torch.cuda.CUDAGraph, Tensor]:
        """A step of `size` sequences, and where it leaves its logits (or tokens; see `launch`)."""
        # Kernels compile, and their scratch buffers appear, before the recording.
        self.fields[:, :size].zero_()
        self.fields[2, :size] = -1
        stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.forward(size, launches, greedy=greedy)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=self._pool):
            result = self.forward(size, launches, greedy=greedy)
        self._first = self._first or graph
        return graph, result

    def forward(self, size: int, launches: ChainLaunches | None, *, greedy: bool = False) -> Tensor:
        """The same step, launched from the host."""
        logits = self._logits(size, launches)
        if not greedy:
            return logits
        tokens = ops.argmax(logits)[1]
        self.fields[0, :size].copy_(tokens)  # where the next step reads them
        return tokens

    def _logits(self, size: int, launches: ChainLaunches | None) -> Tensor:
        token_ids, positions, slots, lengths = (field[:size] for field in self.fields)
        inputs = ForwardBatch(
            token_ids=token_ids,
            positions=positions,
            slot_mapping=slots,
            block_table=self.table.values[:size],
            seq_lens=lengths,
            cu_seqlens_q=lengths[:1],
            num_decode_seqs=size,
            max_q_len=0,
        )
        if launches is None:
            return self._decoder.forward(inputs, self._kv_cache)
        return decode_chain.forward(self._decoder, inputs, self._kv_cache, launches)
