"""One token through the decoder in five fused kernels a layer.

The same computation as `Decoder.forward` for a batch of one decoding sequence, rounded at the same
places, as a chain of programmatic dependent launches: each kernel loads its first weights while
the one before it ends. Kernels of the chain wait before they touch anything another one wrote, and
no kernel in it is launched without that wait, so the order of the chain is total.
"""

from torch import Tensor

from lite_llama import ops
from lite_llama.cache.kv_cache import KVCache, LayerCache
from lite_llama.layouts.dense import DenseWeight
from lite_llama.models.decoder import Block, Decoder
from lite_llama.models.inputs import ForwardBatch
from lite_llama.models.layers import Linear


def fits(decoder: Decoder, num_tokens: int) -> bool:
    """Whether the chain serves this model and step: one token, dense weights of one dtype."""
    linears = [decoder.head]
    for block in decoder.blocks:
        linears += [block.attention.qkv, block.attention.o, block.mlp.gate_up, block.mlp.down]
    return (
        num_tokens == 1
        and isinstance(decoder.embedding, Tensor)
        and decoder.embedding.is_cuda
        and all(
            isinstance(linear.weight, DenseWeight) and linear.weight.values.dtype == decoder.dtype
            for linear in linears
        )
    )


def forward(decoder: Decoder, batch: ForwardBatch, kv_cache: KVCache) -> Tensor:
    """Logits float32 [1, vocab] of a batch of one decoding sequence; see `fits`."""
    x = ops.embedding(batch.token_ids, decoder.embedding)
    for block, cache in zip(decoder.blocks, kv_cache.layers, strict=True):
        x = _block(block, x, batch, cache)
    final = decoder.final_norm
    return ops.norm_linear(x, final.weight, _values(decoder.head), final.eps, overlap=True)


def _block(block: Block, x: Tensor, batch: ForwardBatch, cache: LayerCache) -> Tensor:
    attention, mlp = block.attention, block.mlp
    q = _queries(block, x, batch, cache)
    attended = ops.attention_decode(
        q,
        cache.k,
        cache.v,
        block_table=batch.block_table,
        seq_lens=batch.seq_lens,
        window=attention.config.window,
        overlap=True,
    )
    x = ops.linear_add(
        attended.view(1, -1), _values(attention.o), x, attention.o.bias, overlap=True
    )
    norm = block.mlp_norm
    hidden = ops.norm_gate_up(x, norm.weight, _values(mlp.gate_up), norm.eps, overlap=True)
    return ops.linear_add(hidden, _values(mlp.down), x, overlap=True)


def _queries(block: Block, x: Tensor, batch: ForwardBatch, cache: LayerCache) -> Tensor:
    attention, norm = block.attention, block.attention_norm
    if attention.q_norm is not None:
        # A head's norm needs all its rows, which the programs of norm_qkv share out.
        return attention.project(norm(x), batch, cache)
    return ops.norm_qkv(
        x,
        norm.weight,
        _values(attention.qkv),
        attention.qkv.bias,
        norm.eps,
        cos_sin=attention.cos_sin,
        positions=batch.positions,
        k_cache=cache.k,
        v_cache=cache.v,
        slot_mapping=batch.slot_mapping,
        overlap=True,
    )


def _values(linear: Linear) -> Tensor:
    if not isinstance(linear.weight, DenseWeight):
        raise AssertionError("the chain takes dense weights only; see `fits`")
    return linear.weight.values
