"""Typed access to configuration values: a missing or wrong one is an error that names it."""

import math
from collections.abc import Mapping, Sized
from dataclasses import replace
from typing import Any, cast

from lite_llama.errors import ModelFileError, UnsupportedModel
from lite_llama.models.config import ModelConfig, RopeConfig, RopeKind

# Hugging Face keys that change the mathematics, with the values the decoder implements.
_IMPLEMENTED: Mapping[str, tuple[Any, ...]] = {
    "hidden_act": ("silu",),
    "mlp_bias": (False,),
    "pretraining_tp": (1,),
    "use_sliding_window": (False,),
    "partial_rotary_factor": (1, 1.0),
    "quantization_config": (),
    "clip_qkv": (),
    "logit_scale": (),
    "residual_multiplier": (1.0,),
    "embedding_multiplier": (1.0,),
}

# llama.cpp's keys that change the rotary embedding, with the values that change nothing.
_GGUF_ROPE_NEUTRAL: Mapping[str, float] = {
    "scale_linear": 1.0,
    "scaling.attn_factor": 1.0,
    "scaling.yarn_log_multiplier": 0.0,
    "scaling.yarn_ext_factor": 1.0,
    "scaling.yarn_attn_factor": 1.0,
    "scaling.yarn_beta_fast": 32.0,
    "scaling.yarn_beta_slow": 1.0,
}

_ROPE_KINDS = ("default", "linear", "dynamic", "llama3", "yarn")


def whole(config: Mapping[str, Any], key: str, default: int | None = None) -> int:
    """A positive integer under `key`."""
    value = config.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int) or not 0 < value < 2**31:
        raise ModelFileError(f"config: {key} is {value!r}, expected an integer in 1..2147483647")
    return value


def real(config: Mapping[str, Any], key: str, default: float | None = None) -> float:
    """A positive finite number under `key`."""
    value = config.get(key)
    value = default if value is None else value
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ModelFileError(f"config: {key} is {value!r}, expected a number")
    if not (math.isfinite(value) and value > 0):
        raise ModelFileError(f"config: {key} is {value!r}, expected a positive finite number")
    return float(value)


def flag(config: Mapping[str, Any], key: str, *, default: bool) -> bool:
    """A boolean under `key`."""
    value = config.get(key)
    value = default if value is None else value
    if not isinstance(value, bool):
        raise ModelFileError(f"config: {key} is {value!r}, expected true or false")
    return value


def read_common_hf(config: Mapping[str, Any], family: str) -> ModelConfig:
    """The fields that Llama-like config.json files share; refuses what is not implemented."""
    for key, allowed in _IMPLEMENTED.items():
        value = config.get(key)
        if value is not None and value not in allowed:
            expected = " or ".join(map(repr, allowed)) or "no such key"
            raise UnsupportedModel(f"config: {key} is {value!r}, implemented: {expected}")
    layer_types = config.get("layer_types") or []
    if not isinstance(layer_types, list) or any(kind != "full_attention" for kind in layer_types):
        raise UnsupportedModel(
            f"config: layer_types is {layer_types!r}, implemented: 'full_attention' in every layer"
        )
    hidden_size = whole(config, "hidden_size")
    num_q_heads = whole(config, "num_attention_heads")
    head_dim = whole(config, "head_dim", hidden_size // num_q_heads)
    max_positions = whole(config, "max_position_embeddings")
    rope = read_hf_rope(config, head_dim, max_positions)
    return check_heads(
        ModelConfig(
            family=family,
            vocab_size=whole(config, "vocab_size"),
            hidden_size=hidden_size,
            intermediate_size=whole(config, "intermediate_size"),
            num_layers=whole(config, "num_hidden_layers"),
            num_q_heads=num_q_heads,
            num_kv_heads=whole(config, "num_key_value_heads", num_q_heads),
            head_dim=head_dim,
            norm_eps=real(config, "rms_norm_eps", 1e-6),
            max_positions=_reach(rope, max_positions),
            rope=rope,
            tied_head=flag(config, "tie_word_embeddings", default=False),
        )
    )


def read_hf_rope(config: Mapping[str, Any], head_dim: int, max_positions: int) -> RopeConfig:
    """Rope from `rope_parameters` (transformers 5) or `rope_theta` and `rope_scaling` (before)."""
    scaling = config.get("rope_parameters") or config.get("rope_scaling") or {}
    if not isinstance(scaling, Mapping):
        raise ModelFileError(f"config: rope_scaling is {scaling!r}, expected an object")
    theta = real(scaling, "rope_theta", config.get("rope_theta") or 10000.0)
    kind = scaling.get("rope_type", scaling.get("type")) or "default"
    plain = RopeConfig(theta=theta, rotary_dim=head_dim)
    if scaling.get("partial_rotary_factor") not in (None, 1):
        raise UnsupportedModel(
            f"config: rope partial_rotary_factor is {scaling['partial_rotary_factor']!r}, "
            "implemented: 1"
        )
    if kind not in _ROPE_KINDS:
        raise UnsupportedModel(
            f"config: rope type is {kind!r}, implemented: {', '.join(_ROPE_KINDS)}"
        )
    if kind == "default":
        return plain
    for key in ("mscale", "mscale_all_dim"):
        if scaling.get(key) is not None:
            raise UnsupportedModel(f"config: rope {key} is {scaling[key]!r}, implemented: none")
    # In config.json dynamic scaling counts from max_position_embeddings itself.
    original_key = "original_max_position_embeddings"
    original = max_positions if kind == "dynamic" else whole(scaling, original_key, max_positions)
    attention_factor = scaling.get("attention_factor")
    return replace(
        plain,
        kind=cast(RopeKind, kind),
        factor=real(scaling, "factor"),
        original_max_positions=original,
        low_freq_factor=real(scaling, "low_freq_factor", 1.0),
        high_freq_factor=real(scaling, "high_freq_factor", 4.0),
        beta_fast=real(scaling, "beta_fast", 32.0),
        beta_slow=real(scaling, "beta_slow", 1.0),
        attention_factor=None if attention_factor is None else real(scaling, "attention_factor"),
        truncate=flag(scaling, "truncate", default=True),
    )


def read_common_gguf(metadata: Mapping[str, Any], family: str) -> ModelConfig:
    """The fields every llama.cpp architecture spells alike, under its own prefix."""
    arch = metadata["general.architecture"]

    def key(name: str) -> str:
        return f"{arch}.{name}"

    hidden_size = whole(metadata, key("embedding_length"))
    num_q_heads = whole(metadata, key("attention.head_count"))
    head_dim = whole(metadata, key("attention.key_length"), hidden_size // num_q_heads)
    if whole(metadata, key("attention.value_length"), head_dim) != head_dim:
        raise UnsupportedModel(
            f"{key('attention.value_length')} is {metadata[key('attention.value_length')]}, "
            f"implemented: the key length {head_dim}"
        )
    max_positions = whole(metadata, key("context_length"))
    if key("expert_count") in metadata:
        raise UnsupportedModel(f"{key('expert_count')}: mixture-of-experts is not implemented")
    rope = _read_gguf_rope(metadata, arch, head_dim)
    return check_heads(
        ModelConfig(
            family=family,
            vocab_size=_gguf_vocab_size(metadata),
            hidden_size=hidden_size,
            intermediate_size=whole(metadata, key("feed_forward_length")),
            num_layers=whole(metadata, key("block_count")),
            num_q_heads=num_q_heads,
            num_kv_heads=whole(metadata, key("attention.head_count_kv"), num_q_heads),
            head_dim=head_dim,
            norm_eps=real(metadata, key("attention.layer_norm_rms_epsilon")),
            max_positions=max_positions,
            rope=rope,
            window=_optional_whole(metadata, key("attention.sliding_window")),
        )
    )


def _gguf_vocab_size(metadata: Mapping[str, Any]) -> int:
    tokens = metadata.get("tokenizer.ggml.tokens")
    if not isinstance(tokens, Sized) or isinstance(tokens, str) or not len(tokens):
        raise ModelFileError("tokenizer.ggml.tokens is missing or empty; convert the model again")
    return len(tokens)


def _read_gguf_rope(metadata: Mapping[str, Any], arch: str, head_dim: int) -> RopeConfig:
    theta = real(metadata, f"{arch}.rope.freq_base", 10000.0)
    rotary_dim = whole(metadata, f"{arch}.rope.dimension_count", head_dim)
    if rotary_dim != head_dim:
        raise UnsupportedModel(
            f"{arch}.rope.dimension_count is {rotary_dim}, implemented: head_dim {head_dim}"
        )
    kind = metadata.get(f"{arch}.rope.scaling.type", "none")
    if kind not in ("none", "linear", "yarn"):
        raise UnsupportedModel(
            f"{arch}.rope.scaling.type is {kind!r}, implemented: none, linear, yarn"
        )
    for name, neutral in _GGUF_ROPE_NEUTRAL.items():
        value = metadata.get(f"{arch}.rope.{name}", neutral)
        if value != neutral:
            raise UnsupportedModel(f"{arch}.rope.{name} is {value!r}, implemented: {neutral}")
    rope = RopeConfig(theta=theta, rotary_dim=rotary_dim, kind=kind)
    if kind == "none":
        return rope
    rope = replace(rope, factor=real(metadata, f"{arch}.rope.scaling.factor"))
    if kind == "linear":
        return rope
    original = f"{arch}.rope.scaling.original_context_length"
    return replace(rope, original_max_positions=whole(metadata, original))


def check_heads(config: ModelConfig) -> ModelConfig:
    """The same config, if its heads fit together."""
    if config.num_q_heads % config.num_kv_heads:
        raise ModelFileError(
            f"config: {config.num_q_heads} query heads, expected a multiple of the "
            f"{config.num_kv_heads} key heads"
        )
    if config.head_dim % 2:
        raise ModelFileError(f"config: head_dim is {config.head_dim}, expected an even number")
    return config


def _reach(rope: RopeConfig, max_positions: int) -> int:
    """Positions that the scaling reaches: config.json may give them before or after scaling."""
    if rope.kind in ("dynamic", "linear", "yarn"):
        original = rope.original_max_positions
        return max(max_positions, int(original * rope.factor))
    return max_positions


def _optional_whole(config: Mapping[str, Any], key: str) -> int | None:
    return None if config.get(key) is None else whole(config, key)


def read_window(config: Mapping[str, Any]) -> int | None:
    """Mistral's `sliding_window`; transformers takes 4096 where the key is absent, not null."""
    return _optional_whole({"sliding_window": 4096, **config}, "sliding_window")
