"""Decode steps recorded once per batch size and replayed: the host launches one graph a step.

Inputs lie in buffers that the graphs read: token ids, positions, cache slots, lengths and the
block table. So no graph depends on lengths or on which blocks a sequence owns. A batch is padded
to the next recorded size with rows of length 0 whose slot is −1. Graphs are recorded when a size is
first needed and share one memory pool.

A graph that draws its tokens itself leaves the inputs of the step after it: as long as the same
sequences decode within their blocks, the host sends nothing.
"""

from collections.abc import Callable, Hashable, Sequence
from functools import partial

import torch
from torch import Tensor

from lite_llama.cache.kv_cache import KVCache
from lite_llama.engine.batch import slots_at
from lite_llama.engine.config import EnginePlan
from lite_llama.engine.device_table import DeviceTable
from lite_llama.engine.graph_draw import GREEDY, GraphDraw
from lite_llama.engine.messages import Decode, OwnsBlocks, Row
from lite_llama.engine.recording import Recorded, destroy, padded_sizes, record
from lite_llama.engine.upload import as_tensor, upload
from lite_llama.engine.workers import Workers
from lite_llama.kernel_lib.carveout import launched_functions, set_carveout
from lite_llama.models import decode_chain
from lite_llama.models.chain_launches import ChainLaunches
from lite_llama.models.decoder import Decoder
from lite_llama.models.inputs import ForwardBatch
from lite_llama.models.ranks import RankGroup
from lite_llama.ops.advance_greedy.op import NUM_FIELDS

# Sequences decoded in a step of so many rows, their positions and slots.
_Places = tuple[int, list[int], list[int]]
# The launches of a step's fused chain by its batch size; None: the separate operators.
Choose = Callable[[Decoder, int], ChainLaunches | None]


class DecodeGraphs:
    """Recorded decode steps of one model.

    Every graph reads `fields` int64 [5, max_num_seqs] (token ids, positions, slots, lengths, turns)
    and `table`, which has a row a sequence. It leaves its result in `logits` float32 [max_num_seqs,
    vocab], which all share, or draws from logits of its own: see `ops.advance_greedy`.
    """

    def __init__(
        self,
        decoder: Decoder,
        kv_cache: KVCache,
        plan: EnginePlan,
        logits: Tensor,
        choose: Choose = decode_chain.engine_launches,
    ) -> None:
        device, rows = plan.device, plan.max_num_seqs
        self._decoder = decoder
        self._kv_cache = kv_cache
        self._plan = plan
        self.logits = logits
        self._sizes = padded_sizes(rows)
        # Now, so that a bad table of launches is found before any step.
        self._launches = {size: choose(decoder, size) for size in self._sizes}
        self.fields = torch.zeros((NUM_FIELDS, rows), dtype=torch.int64, device=device)
        self.table = DeviceTable(rows, plan.max_blocks_per_seq, device)
        # A copy to the device reads its source later, and the host what a step has drawn: two of
        # each take turns, and a step is launched only after the one before the last has been read.
        self._staging = torch.zeros((2, NUM_FIELDS - 1, rows), dtype=torch.int64, pin_memory=True)
        self._told = torch.zeros((2, rows), dtype=torch.int64, pin_memory=True)
        self._turn = 0
        self._next: _Places | None = None  # what the last graph has left in the fields
        # By size, and the kind of draw within the graph; None: it leaves its logits.
        self._recorded: dict[tuple[int, Hashable], Recorded] = {}
        self._drawn: Tensor | None = None  # what the last graph left in the token field
        self._pool = torch.cuda.graph_pool_handle()
        # A pool whose graphs are all gone can record no other: the first one stays.
        self._first: torch.cuda.CUDAGraph | None = None

    def launch(
        self,
        requests: Sequence[OwnsBlocks],
        positions: list[int],
        token_ids: list[int] | Tensor,
        draw: GraphDraw | None = None,
    ) -> Tensor:
        """Compute one token of each of n requests: logits float32 [size >= n, vocab], whose rows
        from n on are padding, or the tokens that `draw` draws from them, int64 [n].

        `token_ids` and `positions` of those tokens. Ids may still be on the device, int64 [n]:
        drawn by a step that the host has not read. The next launch overwrites the result.
        """
        count = len(requests)
        size = next(size for size in self._sizes if size >= count)
        key = size, None if draw is None else draw.kind
        if key not in self._recorded:
            if isinstance(token_ids, Tensor):
                token_ids = token_ids.clone()  # they may lie in the fields, which are in the way
            self._recorded[key] = self.record(size, self._launches[size], draw)
        self.table.write(0, [request.blocks for request in requests])
        places = self._write_fields(requests, positions, size)
        if token_ids is not self._drawn:
            if not isinstance(token_ids, Tensor):
                token_ids = upload(token_ids, torch.int64, self._plan.device)
            self.fields[0, :count].copy_(token_ids)
        graph, result = self._recorded[key]
        graph.replay()
        if draw is None:
            self._drawn = None
            return result
        self._next = _after(places)
        self._drawn = result[:count]
        return self._drawn

    @property
    def told(self) -> Tensor:
        """What the last launch draws, for the host: int64 [max_num_seqs].

        To be read once an event recorded after that launch has come, and before the next but one.
        """
        return self._told[1 - self._turn]

    def _write_fields(
        self, requests: Sequence[OwnsBlocks], positions: list[int], size: int
    ) -> _Places:
        """Let the fields hold this step of `size` rows."""
        held, self._next = self._next, None
        slots = slots_at([one.blocks for one in requests], positions, self._plan.block_size)
        places = size, positions, slots
        if places != held:
            padding = size - len(requests)
            rows = [
                positions + [0] * padding,
                slots + [-1] * padding,
                [position + 1 for position in positions] + [0] * padding,
                [self._turn] * size,
            ]
            staging = self._staging[self._turn]
            staging[:, :size] = as_tensor(rows, torch.int64)
            self.fields[1:].copy_(staging, non_blocking=True)
        self._turn = 1 - self._turn
        return places

    def record(
        self, size: int, launches: ChainLaunches | None, draw: GraphDraw | None = None
    ) -> Recorded:
        """A step of `size` sequences, and where it leaves its logits (or tokens; see `launch`)."""
        self._empty(size)
        step = partial(self.forward, size, launches, draw)
        warm_up = None if launches is None else partial(_split_alike, step, launches.carveout)
        recorded = record(step, self._pool, self._plan, warm_up)
        self._first = self._first or recorded[0]
        return recorded

    def _empty(self, size: int) -> None:
        """Let the first rows be padding."""
        self.fields[:, :size].zero_()
        self.fields[2, :size] = -1
        self._drawn = self._next = None

    def forward(
        self, size: int, launches: ChainLaunches | None, draw: GraphDraw | None = None
    ) -> Tensor:
        """The same step, launched from the host."""
        logits = self._compute(size, launches)
        if draw is None:
            return self.logits[:size].copy_(logits)
        draw.advance(logits, self.fields, self._told)
        return self.fields[0, :size]

    def _compute(self, size: int, launches: ChainLaunches | None) -> Tensor:
        token_ids, positions, slots, lengths, _ = (field[:size] for field in self.fields)
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

    def close(self) -> None:
        """Destroy the graphs."""
        destroy(self._recorded)
        self._drawn = None


def _split_alike(step: Callable[[], object], carveout: int) -> None:
    """Run a step, and give all of its kernels one split of an SM's memory from then on."""
    with launched_functions() as functions:
        step()
    set_carveout(functions, carveout)


def _after(places: _Places) -> _Places:
    """What a graph that draws its tokens leaves behind these."""
    size, positions, slots = places
    return size, [position + 1 for position in positions], [slot + 1 for slot in slots]


class SharedGraphs(DecodeGraphs):
    """Decode steps of ranks that share a model: each records and replays what rank 0 launches.

    A step's exchanges are in its graph. Since every rank has all logits, a greedy token is drawn
    by each in the graph and needs no exchange of its own; tokens that rank 0 alone has drawn, which
    knows the requests, and not read are broadcast before the next step, from GPU to GPU.
    """

    def __init__(
        self,
        decoder: Decoder,
        kv_cache: KVCache,
        plan: EnginePlan,
        logits: Tensor,
        workers: Workers | None,
    ) -> None:
        """`workers` on rank 0; None on the others, which `follow`."""
        super().__init__(decoder, kv_cache, plan, logits)
        self._workers = workers
        self._rows: list[Row] = []
        self._sent: list[tuple[list[int], int]] = []

    def launch(
        self,
        requests: Sequence[OwnsBlocks],
        positions: list[int],
        token_ids: list[int] | Tensor,
        draw: GraphDraw | None = None,
    ) -> Tensor:
        """Compute one token of each request, on every rank; see `DecodeGraphs.launch`.

        `draw` may be GREEDY.
        """
        if self._workers is None:
            raise AssertionError("rank 0 launches, the others follow")
        if draw not in (None, GREEDY):
            raise AssertionError(f"only rank 0 knows what a draw of {draw} hangs on")
        step = Decode(
            positions=positions,
            rows=self._rows_to_send(requests),
            token_ids=None if isinstance(token_ids, Tensor) else token_ids,
            are_drawn=isinstance(token_ids, Tensor) and token_ids is self._drawn,
            greedy=draw is GREEDY,
        )
        with self._workers.step():
            self._workers.send(step)
            if isinstance(token_ids, Tensor) and not step.are_drawn:
                token_ids = self._workers.ranks.broadcast(token_ids)
            return super().launch(requests, positions, token_ids, draw)

    def _rows_to_send(self, requests: Sequence[OwnsBlocks]) -> list[Row] | None:
        """The sequences' blocks; None if they are those of the launch before."""
        before = self._sent
        self._sent = [(request.blocks, len(request.blocks)) for request in requests]
        same = len(before) == len(requests) and all(
            was is blocks and length == count
            for (was, length), (blocks, count) in zip(before, self._sent, strict=True)
        )
        return None if same else [Row(request.blocks) for request in requests]

    def follow(self, step: Decode, ranks: RankGroup) -> None:
        """Compute what rank 0 has launched."""
        self._rows = self._rows if step.rows is None else step.rows
        token_ids: list[int] | Tensor | None = step.token_ids
        if step.are_drawn:
            token_ids = self._drawn
        elif token_ids is None:
            unread = torch.empty(len(step.positions), dtype=torch.int64, device=self.fields.device)
            token_ids = ranks.broadcast(unread)
        if token_ids is None:
            raise AssertionError("no step before has drawn the tokens of this one")
        draw = GREEDY if step.greedy else None
        super().launch(self._rows, step.positions, token_ids, draw)
