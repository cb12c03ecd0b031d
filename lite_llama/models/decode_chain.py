"""One token of a few sequences through the decoder in five or six fused kernels a layer.

The same computation as `Decoder.forward` for a small batch of decoding sequences, rounded at the
same places, as a chain of programmatic dependent launches: each kernel loads its first weights
while the one before it ends. Kernels of the chain wait before they touch anything another one
wrote, and no kernel in it is launched without that wait, so the order of the chain is total. The
embedding is a plain launch: what earlier steps wrote (the cache) may be read without a wait.
"""

from torch import Tensor

from lite_llama import ops
from lite_llama.cache.kv_cache import KVCache, LayerCache
from lite_llama.kernel_lib.gemv_launch import MAX_TOKENS, GemvLaunch, token_columns
from lite_llama.kernel_lib.gpu import gpu_spec
from lite_llama.layouts.dense import DenseWeight
from lite_llama.models.chain_launches import (
    ChainLaunches,
    choose_launches,
    find_launches,
    settle_attention,
)
from lite_llama.models.decoder import Block, Decoder
from lite_llama.models.inputs import ForwardBatch
from lite_llama.models.layers import Linear

# Columns of a model that decodes more than 8 tokens by the chain: a program's registers hold all
# of x. At 16 tokens Llama-3.2-1B takes 0.89 ms a step and by the separate operators 1.18,
# Llama-3.1-8B 6.0 and 4.9.
_MOST_HIDDEN = 2048


def fits(decoder: Decoder, num_tokens: int) -> bool:
    """Whether the chain serves this model and step: few tokens, dense weights of one dtype.

    And all of them: between ranks that share a model, o and down end in a sum the chain lacks. More
    tokens than tensor cores take at once are for rings of small models.
    """
    if num_tokens > MAX_TOKENS:
        return False
    linears = [decoder.head]
    for block in decoder.blocks:
        linears += [block.attention.qkv, block.attention.o, block.mlp.gate_up, block.mlp.down]
    return (
        isinstance(decoder.embedding, Tensor)
        and decoder.embedding.is_cuda
        and all(
            type(linear) is Linear
            and isinstance(linear.weight, DenseWeight)
            and linear.weight.values.dtype == decoder.dtype
            for linear in linears
        )
        and (token_columns(num_tokens) == 8 or _has_small_rings(decoder, num_tokens))
    )


def _has_small_rings(decoder: Decoder, num_tokens: int) -> bool:
    config, gpu = decoder.config, gpu_spec(decoder.final_norm.weight.device)
    launches = choose_launches(config, num_tokens, decoder.dtype)
    return config.hidden_size <= _MOST_HIDDEN and launches.all_rings(config, decoder.dtype, gpu)


def engine_launches(decoder: Decoder, num_tokens: int) -> ChainLaunches | None:
    """What the engine launches for a step of so many tokens; None: the separate operators."""
    if not fits(decoder, num_tokens):
        return None
    gpu = gpu_spec(decoder.final_norm.weight.device)
    return find_launches(decoder.config, decoder.dtype, num_tokens, gpu)


def forward(
    decoder: Decoder, batch: ForwardBatch, kv_cache: KVCache, launches: ChainLaunches
) -> Tensor:
    """Logits float32 [n, vocab] of a batch of n decoding sequences; see `fits`."""
    # The chain's own tiles of attention, in plain launches too.
    block_size = kv_cache.layers[0].k.shape[1]
    num_seqs, num_blocks = batch.block_table.shape
    problem = (num_seqs, decoder.dtype, num_blocks * block_size)
    launches = settle_attention(launches, decoder.config, problem, gpu_spec(batch.token_ids.device))
    x = ops.embedding(batch.token_ids, decoder.embedding)
    for block, cache in zip(decoder.blocks, kv_cache.layers, strict=True):
        x = _block(block, x, batch, cache, launches)
    final = decoder.final_norm
    return ops.norm_linear(x, final.weight, _values(decoder.head), final.eps, launch=launches.head)


def _block(
    block: Block, x: Tensor, batch: ForwardBatch, cache: LayerCache, launches: ChainLaunches
) -> Tensor:
    attention, mlp = block.attention, block.mlp
    q = _queries(block, x, batch, cache, launches.qkv)
    attended = ops.attention_decode(
        q,
        cache.k,
        cache.v,
        block_table=batch.block_table,
        seq_lens=batch.seq_lens,
        window=attention.config.window,
        overlap=launches.attention_overlap,
        launch=launches.attention,
    )
    x = ops.linear_add(
        attended.flatten(1), _values(attention.o), x, attention.o.bias, launch=launches.o
    )
    norm = block.mlp_norm
    hidden = ops.norm_gate_up(
        x, norm.weight, _values(mlp.gate_up), norm.eps, launch=launches.gate_up
    )
    return ops.linear_add(hidden, _values(mlp.down), x, launch=launches.down)


def _queries(
    block: Block, x: Tensor, batch: ForwardBatch, cache: LayerCache, launch: GemvLaunch
) -> Tensor:
    attention, norm = block.attention, block.attention_norm
    if attention.q_norm is not None and attention.k_norm is not None:
        # A head's norm needs all its rows, which the programs of norm_qkv share out.
        qkv = ops.norm_linear(
            x, norm.weight, _values(attention.qkv), norm.eps, attention.qkv.bias, launch=launch
        )
        return ops.norm_rope_write(
            qkv,
            attention.q_norm.weight,
            attention.k_norm.weight,
            attention.q_norm.eps,
            cos_sin=attention.cos_sin,
            positions=batch.positions,
            k_cache=cache.k,
            v_cache=cache.v,
            slot_mapping=batch.slot_mapping,
            overlap=launch.overlap >= 0,
        )
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
        launch=launch,
    )


def _values(linear: Linear) -> Tensor:
    if not isinstance(linear.weight, DenseWeight):
        raise AssertionError("the chain takes dense weights only; see `fits`")
    return linear.weight.values
