"""Runs the decoder over planned steps: owns the weights and the KV cache, and nothing else."""

import torch
from torch import Tensor

from lite_llama.cache.kv_cache import KVCache
from lite_llama.engine import batch
from lite_llama.engine.config import EnginePlan
from lite_llama.engine.cuda_graphs import DecodeGraphs, SharedGraphs
from lite_llama.engine.scheduler import Scheduled
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
        if plan.device.type == "cuda" and not plan.enforce_eager:
            self.graphs = (
                DecodeGraphs(decoder, self.kv_cache, plan)
                if plan.tensor_parallel_size == 1
                else SharedGraphs(decoder, self.kv_cache, plan, workers)
            )

    @torch.inference_mode()
    def run(self, planned: list[Scheduled], *, all_logits: bool = False) -> Tensor:
        """Logits, float32 [num_wanted_rows, vocab], of an ordered plan (see `batch.build`)."""
        if self.graphs is not None and not all_logits and batch.only_decodes(planned):
            requests = [scheduled.request for scheduled in planned]
            positions = [request.num_computed_tokens for request in requests]
            tokens = [
                request.tokens(position, position + 1)[0]
                for request, position in zip(requests, positions, strict=True)
            ]
            return self.graphs.launch(requests, positions, tokens)
        inputs = batch.build(planned, self.plan.block_size, all_logits=all_logits)
        if self._workers is None:
            return self.compute(inputs)
        with self._workers.step():
            self._workers.send(inputs)
            return self.compute(inputs)

    def compute(self, inputs: batch.Inputs) -> Tensor:
        """Logits of these inputs, on this rank's part of it all."""
        return self.decoder.forward(inputs.on(self.plan.device), self.kv_cache)
