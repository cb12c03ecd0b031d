"""Runs the decoder over planned steps: owns the weights and the KV cache, and nothing else."""

import torch
from torch import Tensor

from lite_llama.cache.kv_cache import KVCache
from lite_llama.engine import batch
from lite_llama.engine.config import EnginePlan
from lite_llama.engine.cuda_graphs import DecodeGraphs
from lite_llama.engine.prompt_graphs import PromptGraphs
from lite_llama.engine.scheduler import Scheduled
from lite_llama.engine.upload import upload
from lite_llama.models.decoder import Decoder


class Runner:
    """One model on one device."""

    def __init__(self, decoder: Decoder, plan: EnginePlan, num_blocks: int) -> None:
        model = decoder.config
        self.decoder = decoder
        self.plan = plan
        self.kv_cache = KVCache.allocate(
            (model.num_layers, num_blocks, plan.block_size, model.num_kv_heads, model.head_dim),
            plan.precision.activations,
            plan.device,
        )
        on_gpu = plan.device.type == "cuda"
        graphs = on_gpu and not plan.enforce_eager
        self.graphs = DecodeGraphs(decoder, self.kv_cache, plan) if graphs else None
        # Padded without graphs too: the same kernels, so the same bits.
        self.prompts = PromptGraphs(decoder, self.kv_cache, plan) if on_gpu else None

    @torch.inference_mode()
    def run(self, planned: list[Scheduled], *, all_logits: bool = False) -> Tensor:
        """Logits, float32 [num_wanted_rows, vocab], of an ordered plan (see `batch.describe`)."""
        if self.graphs is not None and not all_logits and batch.only_decodes(planned):
            requests = [scheduled.request for scheduled in planned]
            positions = [request.num_computed_tokens for request in requests]
            tokens = [
                request.tokens(position, position + 1)[0]
                for request, position in zip(requests, positions, strict=True)
            ]
            return self.graphs.launch(requests, positions, tokens)
        rows = batch.describe(planned, self.plan.block_size, all_logits=all_logits)
        hidden = self._hidden(rows)
        if not rows.logits:  # a chunk of a prompt that goes on
            return torch.empty(0, self.decoder.config.vocab_size, device=hidden.device)
        if len(rows.logits) < len(rows.token_ids):
            hidden = hidden[upload(rows.logits, torch.int64, self.plan.device)]
        return self.decoder.logits(hidden)

    def _hidden(self, rows: batch.Rows) -> Tensor:
        if self.prompts is not None and rows.max_q_len and self.prompts.fits(rows):
            return self.prompts.run(rows)
        return self.decoder.hidden(batch.build(rows, self.plan.device), self.kv_cache)
