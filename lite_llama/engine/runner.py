"""Runs the decoder over planned steps: owns the weights and the KV cache, and nothing else."""

import torch
from torch import Tensor

from lite_llama.cache.kv_cache import KVCache
from lite_llama.engine import batch
from lite_llama.engine.config import EnginePlan
from lite_llama.engine.cuda_graphs import DecodeGraphs, SharedGraphs
from lite_llama.engine.graph_draw import GraphDraw
from lite_llama.engine.head_graphs import HeadGraphs
from lite_llama.engine.logits import Logits
from lite_llama.engine.prompt_graphs import PromptGraphs
from lite_llama.engine.scheduler import Scheduled
from lite_llama.engine.upload import upload
from lite_llama.engine.workers import Workers
from lite_llama.models.decoder import Decoder


class Runner:
    """One model, or one rank's share of it, on one device.

    With `workers`, it is rank 0's, and what it runs they run too.
    """

    def __init__(
        self, decoder: Decoder, plan: EnginePlan, num_blocks: int, workers: Workers | None = None
    ) -> None:
        model = decoder.config
        self.decoder = decoder
        self.plan = plan
        self.kv_cache = KVCache.allocate(
            (model.num_layers, num_blocks, plan.block_size, model.num_kv_heads, model.head_dim),
            plan.precision.activations,
            plan.device,
        )
        self._workers = workers
        self.graphs: DecodeGraphs | None = None
        # Padded without graphs too: the same kernels, so the same bits.
        self.prompts: PromptGraphs | None = None
        self.heads: HeadGraphs | None = None
        if plan.device.type == "cuda":
            shape = (plan.max_num_seqs, model.vocab_size)
            logits = torch.empty(shape, dtype=torch.float32, device=plan.device)
            self.prompts = PromptGraphs(decoder, self.kv_cache, plan)
            self.heads = HeadGraphs(decoder, plan, logits)
            if not plan.enforce_eager:
                self.graphs = (
                    DecodeGraphs(decoder, self.kv_cache, plan, logits)
                    if plan.tensor_parallel_size == 1
                    else SharedGraphs(decoder, self.kv_cache, plan, logits, workers)
                )

    @torch.inference_mode()
    def run(
        self,
        planned: list[Scheduled],
        unread: batch.Unread | None = None,
        *,
        all_logits: bool = False,
    ) -> Logits:
        """Logits of the wanted rows of an ordered plan (see `batch.build`)."""
        if not all_logits and self.replays(planned):
            return Logits(self._replay(planned, unread, None), in_place=True)
        inputs = batch.build(planned, self.plan.block_size, all_logits=all_logits)
        if self._workers is None:
            return self.compute(inputs, unread)
        with self._workers.step():
            self._workers.send(inputs)
            if unread is not None:
                tokens = self._workers.ranks.broadcast(unread.tokens)
                unread = batch.Unread(tokens, range(len(tokens)))
            return self.compute(inputs, unread)

    def replays(self, planned: list[Scheduled]) -> bool:
        """Whether a recorded decode step computes this plan."""
        return self.graphs is not None and batch.only_decodes(planned)

    @torch.inference_mode()
    def draw(
        self, planned: list[Scheduled], unread: batch.Unread | None, draw: GraphDraw
    ) -> tuple[Tensor, Tensor]:
        """The next token of each request, int64, of a plan that is replayed.

        On the device, and where it tells the host (see `DecodeGraphs.told`).
        """
        tokens = self._replay(planned, unread, draw)
        return tokens, self._decode_graphs.told[: len(tokens)]

    def _replay(
        self, planned: list[Scheduled], unread: batch.Unread | None, draw: GraphDraw | None
    ) -> Tensor:
        requests = [scheduled.request for scheduled in planned]
        positions = [request.num_computed_tokens for request in requests]
        token_ids: list[int] | Tensor
        if unread is not None and len(unread.rows) == len(requests):
            token_ids = unread.tokens
        else:
            inputs = batch.build(planned, self.plan.block_size)
            token_ids = inputs.token_ids
            if unread is not None:
                token_ids = inputs.tokens_on(self.plan.device, unread)
        return self._decode_graphs.launch(requests, positions, token_ids, draw)

    @property
    def _decode_graphs(self) -> DecodeGraphs:
        """Those that `replays` has found to be there."""
        if self.graphs is None:
            raise AssertionError("there are no graphs to replay")
        return self.graphs

    def compute(self, inputs: batch.Inputs, unread: batch.Unread | None) -> Logits:
        """Logits of these inputs, on this rank's part of it all."""
        hidden, wanted = self._hidden(inputs, unread), inputs.logits_rows
        if not wanted:  # a chunk of a prompt that goes on
            nothing = torch.empty(0, self.decoder.config.vocab_size, device=hidden.device)
            return Logits(nothing, in_place=False)
        if len(wanted) == len(inputs.token_ids):
            return Logits(self.decoder.logits(hidden), in_place=False)
        rows = upload(wanted, torch.int64, self.plan.device)
        if self.heads is not None and len(wanted) <= self.plan.max_num_seqs:
            return Logits(self.heads.run(hidden, rows), in_place=True)
        return Logits(self.decoder.logits(hidden[rows]), in_place=False)

    def _hidden(self, inputs: batch.Inputs, unread: batch.Unread | None) -> Tensor:
        if self.prompts is not None and inputs.max_q_len and self.prompts.fits(inputs):
            return self.prompts.run(inputs, unread)
        return self.decoder.hidden(inputs.on(self.plan.device, unread), self.kv_cache)

    def close(self) -> None:
        """Destroy the graphs."""
        for graphs in (self.graphs, self.prompts, self.heads):
            if graphs is not None:
                graphs.close()
