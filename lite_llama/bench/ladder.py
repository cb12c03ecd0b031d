"""`lite-llama bench latency --ablate`: what each step from plain torch to the tuned chain is worth.

Every rung is the same engine on the same weights, end to end; only how a decode step is computed
differs. Prompts are computed by the Triton kernels on every rung.
"""

from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from lite_llama import ops
from lite_llama.bench import latency, record
from lite_llama.bench.harness import measure_machine
from lite_llama.cache.kv_cache import KVCache, LayerCache
from lite_llama.checkpoint.default_model import find_default_model
from lite_llama.engine.config import EngineConfig
from lite_llama.engine.cuda_graphs import Choose, DecodeGraphs
from lite_llama.engine.engine import Engine
from lite_llama.errors import ConfigError
from lite_llama.kernel_lib import tuned
from lite_llama.kernel_lib.gpu import gpu_spec
from lite_llama.layouts.dense import DenseWeight
from lite_llama.models import decode_chain
from lite_llama.models.attention import Attention
from lite_llama.models.chain_launches import (
    ChainLaunches,
    choose_launches,
    dtype_name,
    settle_attention,
    tuned_shape,
    without_early_loads,
    without_overlap,
)
from lite_llama.models.decoder import Decoder
from lite_llama.models.inputs import ForwardBatch
from lite_llama.models.layers import Linear, RMSNorm


@dataclass(frozen=True)
class TorchDecoder(Decoder):
    """The same weights through plain torch calls; `flash`: attention by our kernel instead."""

    flash: bool = False

    def forward(self, batch: ForwardBatch, kv_cache: KVCache) -> Tensor:
        """As `Decoder.forward`; a step with prompts in it is left to that."""
        if batch.max_q_len or not isinstance(self.embedding, Tensor):
            return super().forward(batch, kv_cache)
        kv_lens = [] if self.flash else batch.seq_lens.tolist()
        x = F.embedding(batch.token_ids, self.embedding).to(self.dtype)
        for block, cache in zip(self.blocks, kv_cache.layers, strict=True):
            normed = _norm(x, block.attention_norm)
            q = _project(block.attention, normed, batch, cache)
            attended = self._attend(q, batch, cache, kv_lens)
            x = x + _linear(attended.flatten(1), block.attention.o)
            gate, up = _linear(_norm(x, block.mlp_norm), block.mlp.gate_up).chunk(2, -1)
            x = x + _linear(F.silu(gate) * up, block.mlp.down)
        return _linear(_norm(x, self.final_norm), self.head).float()

    def _attend(
        self, q: Tensor, batch: ForwardBatch, cache: LayerCache, kv_lens: list[int]
    ) -> Tensor:
        window = self.config.window
        if self.flash:
            return ops.attention_decode(
                q,
                cache.k,
                cache.v,
                block_table=batch.block_table,
                seq_lens=batch.seq_lens,
                window=window,
            )
        return torch.stack(
            [
                standard_attention(q[i], cache, batch.block_table[i], kv_len, window)
                for i, kv_len in enumerate(kv_lens)
            ]
        )


def standard_attention(
    q: Tensor, cache: LayerCache, blocks: Tensor, kv_len: int, window: int | None
) -> Tensor:
    """Attention of q [num_q_heads, head_dim] with its matrix of scores, softmax in float32."""
    block_size, num_kv_heads = cache.k.shape[1:3]
    blocks = blocks[: -(-kv_len // block_size)]
    first = 0 if window is None else max(0, kv_len - window)
    keys, values = (
        x[blocks].flatten(0, 1)[first:kv_len].transpose(0, 1) for x in (cache.k, cache.v)
    )
    heads = q.view(num_kv_heads, -1, q.shape[-1])
    scores = heads @ keys.transpose(1, 2) * q.shape[-1] ** -0.5
    weights = torch.softmax(scores.float(), dim=-1).to(q.dtype)
    return (weights @ values).view(q.shape)


def _norm(x: Tensor, norm: RMSNorm) -> Tensor:
    return F.rms_norm(x, (x.shape[-1],), norm.weight, norm.eps)


def _linear(x: Tensor, linear: Linear) -> Tensor:
    if not isinstance(linear.weight, DenseWeight):
        raise ConfigError("--ablate needs dense weights; load with --dtype bfloat16")
    return F.linear(x, linear.weight.values, linear.bias)


def _project(attention: Attention, x: Tensor, batch: ForwardBatch, cache: LayerCache) -> Tensor:
    """Rotated queries; the new keys and values go to the cache."""
    config = attention.config
    sizes = [config.num_q_heads, config.num_kv_heads, config.num_kv_heads]
    heads = _linear(x, attention.qkv).view(len(x), -1, config.head_dim)
    q, k, v = torch.split(heads, sizes, dim=1)
    if attention.q_norm is not None and attention.k_norm is not None:
        q, k = _norm(q, attention.q_norm), _norm(k, attention.k_norm)
    cos, sin = attention.cos_sin[batch.positions][:, None].chunk(2, -1)
    q, k = (_rotate(heads, cos, sin) for heads in (q, k))
    for new, kept in ((k, cache.k), (v, cache.v)):
        kept.view(-1, *kept.shape[2:]).index_copy_(0, batch.slot_mapping, new)
    return q


def _rotate(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x[..., : 2 * cos.shape[-1]].chunk(2, -1)
    turned = torch.cat((a * cos - b * sin, b * cos + a * sin), -1).to(x.dtype)
    return torch.cat((turned, x[..., 2 * cos.shape[-1] :]), -1)


def main(
    model: str | None,
    *,
    preset: str | None,
    batch: list[int],
    prompt_len: int,
    gen_len: int,
    dtype: str,
    log: Path = record.DEFAULT_FOLDER,
) -> None:
    """Measure every rung in turn, print the ladder, append it to the log."""
    if not torch.cuda.is_available():
        raise ConfigError("--ablate measures GPU kernels, and torch sees no GPU; leave it out")
    if max(batch) > max(tuned.BATCHES):
        raise ConfigError(f"--ablate takes --batch up to {max(tuned.BATCHES)}, got {max(batch)}")
    per_sequence = -(-(prompt_len + gen_len) // 16) + 2
    settings = EngineConfig(
        device="cuda",
        dtype=dtype,  # type: ignore[arg-type]
        max_num_seqs=max(tuned.BATCHES),
        num_blocks=max(batch) * per_sequence,
        prefix_caching=False,
    )
    base = latency.build_engine(settings, model, preset)
    name = preset or (Path(model).name if model else find_default_model().stem)
    machine = measure_machine(base.plan.device)
    run = record.describe_run(base.plan.device)
    for size in batch:
        floor = latency.floor_s(base, machine, size * (prompt_len + gen_len // 2))
        engines: dict[str, latency.Measure] = {
            which: partial(latency.measure_engine, engine)
            for which, engine in rungs(base, size).items()
        }
        prompts = latency.random_prompts(size, prompt_len, base.model.vocab_size)
        results = latency.take_turns(engines, prompts, gen_len)
        case = f"{name} b{size} p{prompt_len} g{gen_len}"
        lines = [
            latency.make_line(case, which, times, size, floor) | {"bench": "ladder"}
            for which, times in results.items()
        ]
        above = lines[0]["median_us"]
        for line in lines:
            print(f"{latency.row(line)}  {above / line['median_us']:.2f}x")
            above = line["median_us"]
        record.append(run, lines, log)


def rungs(base: Engine, size: int) -> dict[str, Engine]:
    """An engine a rung, slowest first, on the weights of `base`, for batches of `size`.

    Without a table for the model there is no tuned rung. Attention's kernel asks for its keys
    before its wait whenever it is a dependent launch: that is part of the rung of PDL.
    """
    decoder, plan = base.runner.decoder, base.plan
    num_blocks = base.scheduler.pool.num_blocks
    parts = {field.name: getattr(decoder, field.name) for field in fields(Decoder)}
    eager = replace(plan, enforce_eager=True)
    found = {
        f"{1 + index} {name}": Engine(each, eager, num_blocks, frozenset())
        for index, (name, each) in enumerate(
            {
                "torch": TorchDecoder(**parts),
                "torch, flash attention": TorchDecoder(**parts, flash=True),
                "Triton kernels": decoder,
            }.items()
        )
    }
    for name, launches in _chains(base, size).items():
        engine = Engine(decoder, plan, num_blocks, frozenset())
        if engine.runner.graphs is None:
            raise AssertionError("the ladder's engine records graphs")
        engine.runner.graphs = DecodeGraphs(
            decoder,
            engine.runner.kv_cache,
            plan,
            engine.runner.graphs.logits,
            _always(launches),
        )
        found[f"{1 + len(found)} {name}"] = engine
    return found


def _always(launches: ChainLaunches | None) -> Choose:
    return lambda *_: launches


def _chains(base: Engine, size: int) -> dict[str, ChainLaunches | None]:
    """The recorded rungs; None: the separate operators."""
    decoder, plan = base.runner.decoder, base.plan
    found: dict[str, ChainLaunches | None] = {"+ CUDA graph": None}
    if not decode_chain.fits(decoder, size):
        return found
    gpu, activations = gpu_spec(plan.device), plan.precision.activations
    tokens = plan.max_blocks_per_seq * plan.block_size
    chain = settle_attention(
        choose_launches(base.model, size, activations), base.model, (size, activations, tokens), gpu
    )
    found |= {
        "+ fusion": without_overlap(chain),
        "+ PDL": without_early_loads(chain),
        "+ preload, prefetch, overlap": chain,
    }
    if tuned.find(gpu, tuned_shape(base.model), dtype_name(activations), size) is not None:
        found["+ tuned"] = decode_chain.engine_launches(decoder, size)
    else:
        print(f"no tuned launches for this model on {gpu.name}: lite-llama tune finds them")
    return found
