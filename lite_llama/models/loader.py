"""From a checkpoint to a decoder: every tensor is found, checked, packed, and none is left over."""

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from lite_llama.checkpoint.reader import Checkpoint
from lite_llama.errors import ModelFileError
from lite_llama.formats import q4_0, q4_1, q8_0
from lite_llama.formats.raw_tensor import RawTensor
from lite_llama.formats.registry import FORMATS, dequantize, raw_blocks, stored_values
from lite_llama.layouts.dense import DenseWeight
from lite_llama.layouts.encoded_rows import EncodedRows
from lite_llama.layouts.int4_groups import GROUP_SIZE, ROW_MULTIPLE, Int4Groups
from lite_llama.layouts.packed_weight import PackedWeight
from lite_llama.layouts.refined_rows import RefinedRows
from lite_llama.models.attention import Attention
from lite_llama.models.config import ModelConfig
from lite_llama.models.decoder import Block, Decoder
from lite_llama.models.families import find_family
from lite_llama.models.families.family import Family, Part
from lite_llama.models.layers import GatheredLinear, Linear, RMSNorm, SummedLinear
from lite_llama.models.mlp import GatedMLP
from lite_llama.models.ranks import RankGroup
from lite_llama.models.rotary import cos_sin_table
from lite_llama.models.shards import Share, check_blocks, check_sizes

_INT4_FORMATS = {"Q4_0": q4_0, "Q4_1": q4_1}
# Tensors that some converters write and that carry nothing a decoder needs.
_REDUNDANT_SUFFIXES = ("rotary_emb.inv_freq", "attention.rope.inv_freq")
_ROPE_FACTORS = "rope_freqs.weight"


@dataclass(frozen=True)
class Precision:
    """How weights and activations are held.

    `weights` None keeps a quantised weight quantised where a layout for the device exists, and a
    floating one in the dtype of the file.
    """

    activations: torch.dtype
    weights: torch.dtype | None


def resolve_precision(
    name: Literal["auto", "float32", "bfloat16", "float16"],
    device: torch.device,
    half: torch.dtype = torch.bfloat16,
) -> Precision:
    """What a `dtype` setting means on a device: auto is fast and faithful, float32 is exact.

    `half` is what auto takes on a GPU; see `choose_half`.
    """
    if name == "auto":
        return Precision(torch.float32, None) if device.type == "cpu" else Precision(half, half)
    dtype: torch.dtype = getattr(torch, name)
    return Precision(dtype, dtype)


def choose_half(config: ModelConfig, formats: Collection[str]) -> torch.dtype:
    """The 16-bit dtype that loses least of a file whose tensors have these formats.

    Quantised weights have float16 scales, which bfloat16 would round: on the default model it
    changes the first word of an answer. But the activations of Qwen's models, known here by their
    biases or q/k norms, overflow float16.
    """
    rounds = any(name == "F16" or name not in ("F32", "BF16") for name in formats)
    fits = not (config.qkv_bias or config.qk_norm)
    return torch.float16 if rounds and fits else torch.bfloat16


def read_config(checkpoint: Checkpoint) -> ModelConfig:
    """The configuration, with what only tensors tell: a tied head, biases, rope factors."""
    family = find_family(checkpoint.kind, checkpoint.metadata)
    if checkpoint.kind == "hf":
        return family.read_hf_config(checkpoint.metadata)
    config = family.read_gguf_config(checkpoint.metadata)
    factors = checkpoint.tensors.get(_ROPE_FACTORS)
    if factors is not None:
        if config.rope.kind != "none" or factors.shape != (config.rope.rotary_dim // 2,):
            raise ModelFileError(
                f"tensor {_ROPE_FACTORS} {list(factors.shape)} does not go with rope scaling "
                f"{config.rope.kind!r} over {config.rope.rotary_dim} dimensions; convert again"
            )
        divisors = tuple(dequantize(factors).tolist())
        config = replace(config, rope=replace(config.rope, kind="factors", factors=divisors))
    has = checkpoint.tensors.__contains__
    return replace(
        config,
        tied_head=not has("output.weight"),
        qkv_bias=config.qkv_bias or has("blk.0.attn_q.bias"),
        o_bias=has("blk.0.attn_output.bias"),
    )


def expected_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Canonical name -> shape of every parameter a model of this configuration has."""
    hidden, head_dim = config.hidden_size, config.head_dim
    qkv_rows = config.q_size + 2 * config.kv_size
    shapes: dict[str, tuple[int, ...]] = {"embedding.weight": (config.vocab_size, hidden)}
    layer: dict[str, tuple[int, ...]] = {
        "attention_norm.weight": (hidden,),
        "qkv.weight": (qkv_rows, hidden),
        **({"qkv.bias": (qkv_rows,)} if config.qkv_bias else {}),
        **({"q_norm.weight": (head_dim,), "k_norm.weight": (head_dim,)} if config.qk_norm else {}),
        "o.weight": (hidden, config.q_size),
        **({"o.bias": (hidden,)} if config.o_bias else {}),
        "mlp_norm.weight": (hidden,),
        "gate_up.weight": (2 * config.intermediate_size, hidden),
        "down.weight": (hidden, config.intermediate_size),
    }
    for i in range(config.num_layers):
        shapes |= {f"layers.{i}.{name}": shape for name, shape in layer.items()}
    shapes["final_norm.weight"] = (hidden,)
    if not config.tied_head:
        shapes["head.weight"] = (config.vocab_size, hidden)
    return shapes


@dataclass(frozen=True)
class ParameterSource:
    """One parameter: canonical name, shape, and the source tensors it is concatenated from."""

    name: str
    shape: tuple[int, ...]
    parts: tuple[tuple[RawTensor, Part], ...]

    def cut(self, share: Share, whole: ModelConfig) -> "ParameterSource":
        """The part of it that one rank holds."""
        parts = share.cut(self.name, self.parts, whole)
        shape = (sum(raw.shape[0] for raw, _ in parts), *parts[0][0].shape[1:])
        return ParameterSource(self.name, shape, parts)


def find_sources(checkpoint: Checkpoint, config: ModelConfig) -> list[ParameterSource]:
    """Every parameter with its source tensors; a missing, misshapen or leftover one is an error."""
    family = find_family(checkpoint.kind, checkpoint.metadata)
    used: set[str] = set()
    sources = []
    for name, shape in expected_shapes(config).items():
        found = []
        for part in _parts_of(family, checkpoint.kind, name):
            raw = checkpoint.tensors.get(part.name)
            if raw is None:
                raise ModelFileError(
                    f"tensor {part.name!r} ({name}) is missing from {checkpoint.path}; "
                    "download or convert the model again"
                )
            used.add(part.name)
            found.append((raw, part))
        expected = part_shapes(family, checkpoint.kind, config, name)
        for (raw, _), (_, part_shape) in zip(found, expected, strict=True):
            _check_shape(name, raw, part_shape)
        sources.append(ParameterSource(name, shape, tuple(found)))
    _check_leftovers(checkpoint, config, used)
    return sources


def check_shares(checkpoint: Checkpoint, config: ModelConfig, size: int) -> None:
    """Raise ConfigError if `size` ranks cannot share this model."""
    check_sizes(config, size)
    for source in find_sources(checkpoint, config):
        check_blocks(source.name, source.parts, config, size)


def _parts_of(family: Family, kind: str, name: str) -> Iterator[Part]:
    parameters = family.hf_parameters if kind == "hf" else family.gguf_parameters
    prefix, _, rest = name.partition(".")
    layer = ""
    key = name
    if prefix == "layers":
        layer, _, tail = rest.partition(".")
        key = f"layers.{{i}}.{tail}"
    for part in parameters[key]:
        yield Part(part.name.replace("{i}", layer), part.rows)


def part_shapes(
    family: Family, kind: Literal["hf", "gguf"], config: ModelConfig, name: str
) -> list[tuple[str, tuple[int, ...]]]:
    """(source name, shape) of each tensor that parameter `name` is concatenated from."""
    whole = expected_shapes(config)[name]
    found = list(_parts_of(family, kind, name))
    if len(found) == 1:
        sizes = [whole[0]]
    elif len(found) == 2:
        sizes = [whole[0] // 2] * 2
    else:
        sizes = [config.q_size, config.kv_size, config.kv_size]
    return [(part.name, (size, *whole[1:])) for part, size in zip(found, sizes, strict=True)]


def _check_shape(name: str, raw: RawTensor, shape: tuple[int, ...]) -> None:
    if raw.shape != shape:
        raise ModelFileError(
            f"tensor {raw.name!r} ({name}) has shape {list(raw.shape)}, but the configuration "
            f"says {list(shape)}; weights and configuration are of different models"
        )


def _check_leftovers(checkpoint: Checkpoint, config: ModelConfig, used: set[str]) -> None:
    for name in checkpoint.tensors:
        if name in used or name.endswith(_REDUNDANT_SUFFIXES) or name == _ROPE_FACTORS:
            continue
        # A tied head may be stored a second time.
        if config.tied_head and name in ("lm_head.weight", "output.weight"):
            continue
        raise ModelFileError(
            f"tensor {name!r} of {checkpoint.path} belongs to no parameter of the model; "
            "it would be ignored, and the answers would be wrong"
        )


def load_decoder(
    checkpoint: Checkpoint,
    config: ModelConfig,
    precision: Precision,
    *,
    device: torch.device,
    num_positions: int,
    progress: Callable[[int, int], None] | None = None,
    ranks: RankGroup | None = None,
) -> Decoder:
    """Pack every parameter and build the decoder; `progress(bytes done, bytes in all)`.

    `num_positions` sizes the rotary table. With `ranks`, which may join later, it is this rank's
    share of the model (see `check_shares`).
    """
    packer = _Packer(config, precision, device)
    sources = find_sources(checkpoint, config)
    total = sum(raw.data.nbytes for source in sources for raw, _ in source.parts)
    done = 0
    packed: dict[str, PackedWeight | EncodedRows | Tensor] = {}
    for source in sources:
        part = source if ranks is None else source.cut(ranks.share, config)
        packed[source.name] = table = packer.pack(part)
        if source.name == "embedding.weight" and config.tied_head:
            packed["head.weight"] = _tied_head(packer, source, table, ranks)
        done += sum(raw.data.nbytes for raw, _ in source.parts)
        if progress is not None:
            progress(done, total)
    cos_sin = cos_sin_table(config.rope, num_positions).to(device)
    held = config if ranks is None else ranks.share.config(config)
    return _build(held, packed, cos_sin, precision.activations, ranks)


def _tied_head(
    packer: "_Packer",
    source: ParameterSource,
    table: PackedWeight | EncodedRows | Tensor,
    ranks: RankGroup | None,
) -> PackedWeight | EncodedRows | Tensor:
    """The head that is the embedding again: the same memory where the table is a matrix."""
    head = replace(source, name="head.weight")
    if isinstance(table, Tensor) and packer.precision.weights is not None:
        if ranks is None:
            return DenseWeight(table)
        return DenseWeight(ranks.share.cut_values(head.name, table, packer.config))
    return packer.pack(head if ranks is None else head.cut(ranks.share, packer.config))


def random_decoder(
    config: ModelConfig,
    precision: Precision,
    *,
    device: torch.device,
    num_positions: int,
    ranks: RankGroup | None = None,
) -> Decoder:
    """A decoder with random weights (normal, 0.02 wide; norms near 1), for benchmarks and tests.

    With `ranks`, it is this rank's share of one model, whose weights all ranks draw alike.
    """
    dtype = precision.weights or precision.activations
    packed: dict[str, PackedWeight | EncodedRows | Tensor] = {}
    alike = None if ranks is None else torch.Generator(device).manual_seed(0)
    for name, shape in expected_shapes(config).items():
        values = torch.randn(shape, dtype=dtype, device=device, generator=alike) * 0.02
        if "norm" in name:
            values += 1.0
        is_matrix = len(shape) == 2 and name != "embedding.weight"
        part = values if ranks is None else ranks.share.cut_values(name, values, config)
        packed[name] = DenseWeight(part) if is_matrix else part
        if name == "embedding.weight" and config.tied_head:
            head = values
            if ranks is not None:
                head = ranks.share.cut_values("head.weight", values, config)
            packed["head.weight"] = DenseWeight(head)
    cos_sin = cos_sin_table(config.rope, num_positions).to(device)
    held = config if ranks is None else ranks.share.config(config)
    return _build(held, packed, cos_sin, precision.activations, ranks)


@dataclass(frozen=True)
class _Packer:
    config: ModelConfig
    precision: Precision
    device: torch.device

    def pack(self, source: ParameterSource) -> PackedWeight | EncodedRows | Tensor:
        """A matrix in a layout; a vector, or an embedding table that is not left encoded, dense."""
        formats = {raw.format for raw, _ in source.parts}
        keeps_format = self.precision.weights is None
        if source.name == "embedding.weight":
            if keeps_format and formats.isdisjoint(("F32", "F16", "BF16")):
                return self._encoded_rows(source)
            return self._dense(source)
        if len(source.shape) == 1:
            return self._decode(source, self.precision.activations)
        if keeps_format and source.name == "head.weight":
            return RefinedRows(self._matrix(source), self._encoded_rows(source))
        return self._matrix(source)

    def _matrix(self, source: ParameterSource) -> PackedWeight:
        formats = {raw.format for raw, _ in source.parts}
        if self.precision.weights is None and self._fits_int4(source):
            if formats <= _INT4_FORMATS.keys():
                return self._int4(source)
            if formats == {"Q8_0"}:
                return self._int8(source)
        return DenseWeight(self._dense(source))

    def _fits_int4(self, source: ParameterSource) -> bool:
        rows, columns = source.shape
        return rows % ROW_MULTIPLE == 0 and columns % GROUP_SIZE == 0

    def _encoded_rows(self, source: ParameterSource) -> EncodedRows:
        (raw, _) = source.parts[0]
        fmt = FORMATS[raw.format]
        rows = raw_blocks(raw).view(raw.shape[0], -1)
        return EncodedRows(rows, fmt.block_bytes, raw.shape[1], fmt.dequantize)

    def _int4(self, source: ParameterSource) -> Int4Groups:
        codes, scales, minima = [], [], []
        for raw, part in source.parts:
            unpack = _INT4_FORMATS[raw.format].unpack_integers
            q, scale, minimum = unpack(raw_blocks(self._reordered(raw, part)))
            rows = raw.shape[0]
            codes.append(q.view(rows, -1))
            scales.append(scale.view(rows, -1))
            minima.append(minimum.view(rows, -1))
        scale = torch.cat(scales)
        return Int4Groups.from_codes(torch.cat(codes), scale, torch.cat(minima) + 8.0 * scale)

    def _int8(self, source: ParameterSource) -> Int4Groups:
        codes, scales = [], []
        for raw, part in source.parts:
            q, scale, _ = q8_0.unpack_integers(raw_blocks(self._reordered(raw, part)))
            codes.append(q.reshape(raw.shape[0], -1))
            scales.append(scale.view(raw.shape[0], -1))
        return Int4Groups.from_int8(torch.cat(codes), torch.cat(scales))

    def _dense(self, source: ParameterSource) -> Tensor:
        wanted = self.precision.weights
        if wanted is None:
            # A floating checkpoint keeps its own width; fp16 becomes bf16, which CPUs multiply.
            floating = {raw.format for raw, _ in source.parts}
            wanted = torch.float32 if floating == {"F32"} else torch.bfloat16
        return self._decode(source, wanted)

    def _decode(self, source: ParameterSource, dtype: torch.dtype) -> Tensor:
        parts = []
        for raw, part in source.parts:
            raw = self._reordered(raw, part)
            stored = stored_values(raw)
            if stored is None:
                parts.append(dequantize(raw).to(self.device, dtype))
            else:  # a device takes the file's bytes as they are, and rounds them if it must
                parts.append(stored.to(self.device, copy=True).to(dtype))
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def _reordered(self, raw: RawTensor, part: Part) -> RawTensor:
        if part.rows is None:
            return raw
        rows = raw.shape[0]
        data = raw.data.reshape(rows, -1)[part.rows(self.config, rows)]
        return replace(raw, data=np.ascontiguousarray(data).reshape(-1))


def _build(
    config: ModelConfig,
    packed: Mapping[str, PackedWeight | EncodedRows | Tensor],
    cos_sin: Tensor,
    activations: torch.dtype,
    ranks: RankGroup | None,
) -> Decoder:
    def vector(name: str) -> Tensor | None:
        value = packed.get(name)
        return value if isinstance(value, Tensor) else None

    def linear(name: str) -> Linear:
        weight = packed[f"{name}.weight"]
        if isinstance(weight, Tensor | EncodedRows):
            raise AssertionError(f"{name} is not packed as a matrix")
        return Linear(weight, vector(f"{name}.bias"))

    def norm(name: str) -> RMSNorm | None:
        weight = vector(f"{name}.weight")
        return None if weight is None else RMSNorm(weight, config.norm_eps)

    def required_norm(name: str) -> RMSNorm:
        found = norm(name)
        if found is None:
            raise AssertionError(f"{name} is missing")
        return found

    def block(i: int) -> Block:
        at = f"layers.{i}."
        attention = Attention(
            config=config,
            qkv=linear(at + "qkv"),
            o=_summed(linear(at + "o"), ranks),
            q_norm=norm(at + "q_norm"),
            k_norm=norm(at + "k_norm"),
            cos_sin=cos_sin,
        )
        return Block(
            attention_norm=required_norm(at + "attention_norm"),
            attention=attention,
            mlp_norm=required_norm(at + "mlp_norm"),
            mlp=GatedMLP(gate_up=linear(at + "gate_up"), down=_summed(linear(at + "down"), ranks)),
        )

    embedding = packed["embedding.weight"]
    if not isinstance(embedding, Tensor | EncodedRows):
        raise AssertionError("the embedding is not packed as a table")
    return Decoder(
        config=config,
        embedding=embedding,
        blocks=tuple(block(i) for i in range(config.num_layers)),
        final_norm=required_norm("final_norm"),
        head=_gathered(linear("head"), ranks),
        dtype=activations,
    )


def _summed(linear: Linear, ranks: RankGroup | None) -> Linear:
    if ranks is None:
        return linear
    bias = linear.bias if ranks.share.rank == 0 else None
    return SummedLinear(linear.weight, bias, ranks=ranks)


def _gathered(linear: Linear, ranks: RankGroup | None) -> Linear:
    return linear if ranks is None else GatheredLinear(linear.weight, linear.bias, ranks=ranks)
