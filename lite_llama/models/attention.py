"""Grouped-query attention over the paged cache."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lite_llama import ops
from lite_llama.cache.kv_cache import LayerCache
from lite_llama.models.config import ModelConfig
from lite_llama.models.inputs import ForwardBatch
from lite_llama.models.layers import Linear, RMSNorm


@dataclass(frozen=True)
class Attention:
    """Projections of one attention block; `qkv` holds query, key and value rows in that order."""

    config: ModelConfig
    qkv: Linear
    o: Linear
    q_norm: RMSNorm | None
    k_norm: RMSNorm | None
    cos_sin: Tensor  # float32 [max_positions, rotary_dim], shared by all layers

    def __call__(self, x: Tensor, batch: ForwardBatch, cache: LayerCache) -> Tensor:
        """x [num_tokens, hidden] -> [num_tokens, hidden]; writes the new keys and values."""
        q = self.project(x, batch, cache)
        return self.o(self._attend(q, batch, cache).flatten(1))

    def project(self, x: Tensor, batch: ForwardBatch, cache: LayerCache) -> Tensor:
        """Rotated queries [num_tokens, num_q_heads, head_dim]; keys and values go to the cache."""
        config = self.config
        num_q, num_kv = config.num_q_heads, config.num_kv_heads
        heads = self.qkv(x).view(x.shape[0], -1, config.head_dim)
        q, k, v = heads[:, :num_q], heads[:, num_q : num_q + num_kv], heads[:, num_q + num_kv :]
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        ops.rope(q, k, self.cos_sin, batch.positions)
        ops.kv_write(k, v, cache.k, cache.v, batch.slot_mapping)
        return q

    def _attend(self, q: Tensor, batch: ForwardBatch, cache: LayerCache) -> Tensor:
        num_decodes, table, lengths = batch.num_decode_seqs, batch.block_table, batch.seq_lens
        if not batch.max_q_len:
            return self._decode(q, table, lengths, cache)
        # Padding among those that decode writes rows of the prompts, which come after it.
        out = torch.empty_like(q, memory_format=torch.contiguous_format)
        if num_decodes:
            out[:num_decodes] = self._decode(
                q[:num_decodes], table[:num_decodes], lengths[:num_decodes], cache
            )
        return ops.attention_prefill(
            q,
            cache.k,
            cache.v,
            cu_seqlens_q=batch.cu_seqlens_q,
            seq_lens=lengths[num_decodes:],
            max_q_len=batch.max_q_len,
            block_table=table[num_decodes:],
            window=self.config.window,
            out=out,
        )

    def _decode(self, q: Tensor, table: Tensor, lengths: Tensor, cache: LayerCache) -> Tensor:
        return ops.attention_decode(
            q, cache.k, cache.v, block_table=table, seq_lens=lengths, window=self.config.window
        )
