"""The one decoder. Families differ in the values of ModelConfig, never in code here."""

from dataclasses import dataclass

from torch import Tensor, dtype

from lite_llama import ops
from lite_llama.cache.kv_cache import KVCache, LayerCache
from lite_llama.layouts.encoded_rows import EncodedRows
from lite_llama.models.attention import Attention
from lite_llama.models.config import ModelConfig
from lite_llama.models.inputs import ForwardBatch
from lite_llama.models.layers import Linear, RMSNorm
from lite_llama.models.mlp import GatedMLP


@dataclass(frozen=True)
class Block:
    """One transformer layer, pre-norm."""

    attention_norm: RMSNorm
    attention: Attention
    mlp_norm: RMSNorm
    mlp: GatedMLP

    def __call__(
        self, x: Tensor, residual: Tensor | None, batch: ForwardBatch, cache: LayerCache
    ) -> tuple[Tensor, Tensor]:
        """(this layer's output not yet added, the residual stream), each [num_tokens, hidden]."""
        if residual is None:
            normed, residual = self.attention_norm(x), x
        else:
            normed, residual = self.attention_norm.add(x, residual)
        attended = self.attention(normed, batch, cache)
        normed, residual = self.mlp_norm.add(attended, residual)
        return self.mlp(normed), residual


@dataclass(frozen=True)
class Decoder:
    """Embedding, layers, final norm and head."""

    config: ModelConfig
    embedding: Tensor | EncodedRows
    blocks: tuple[Block, ...]
    final_norm: RMSNorm
    head: Linear
    dtype: dtype  # of activations

    def forward(self, batch: ForwardBatch, kv_cache: KVCache) -> Tensor:
        """Logits, float32 [num_tokens, vocab]; the new keys and values are in the cache after."""
        return self.logits(self.hidden(batch, kv_cache))

    def hidden(self, batch: ForwardBatch, kv_cache: KVCache) -> Tensor:
        """What the head reads, [num_tokens, hidden]: the last layer's output, normalised."""
        x = ops.embedding(batch.token_ids, self.embedding).to(self.dtype)
        residual: Tensor | None = None
        for block, cache in zip(self.blocks, kv_cache.layers, strict=True):
            x, residual = block(x, residual, batch, cache)
        if residual is None:
            raise AssertionError("a decoder has at least one layer")
        return self.final_norm.add(x, residual)[0]

    def logits(self, hidden: Tensor) -> Tensor:
        """hidden [num_rows, hidden_size], any rows of `hidden`'s result -> float32 [..., vocab]."""
        return self.head(hidden).float()
