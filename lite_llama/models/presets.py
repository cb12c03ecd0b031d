"""Configurations of well-known models, for inspection and benchmarks without their weights.

Each is the part of the model's published config.json that its shapes and mathematics come from.
"""

from collections.abc import Mapping
from typing import Any

from lite_llama.errors import ModelNotFound
from lite_llama.models.config import ModelConfig
from lite_llama.models.families import find_family

_LLAMA_3_ROPE = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}


def _config(architecture: str, shape: tuple[int, ...], **rest: Any) -> Mapping[str, Any]:
    """`shape`: hidden, intermediate, layers, query heads, key heads, vocabulary, positions."""
    keys = (
        "hidden_size",
        "intermediate_size",
        "num_hidden_layers",
        "num_attention_heads",
        "num_key_value_heads",
        "vocab_size",
        "max_position_embeddings",
    )
    return {"architectures": [architecture], **dict(zip(keys, shape, strict=True)), **rest}


PRESETS: Mapping[str, Mapping[str, Any]] = {
    "llama-3.2-1b": _config(
        "LlamaForCausalLM",
        (2048, 8192, 16, 32, 8, 128256, 131072),
        head_dim=64,
        rms_norm_eps=1e-5,
        rope_theta=500000.0,
        rope_scaling={**_LLAMA_3_ROPE, "factor": 32.0},
        tie_word_embeddings=True,
    ),
    "llama-3.2-3b": _config(
        "LlamaForCausalLM",
        (3072, 8192, 28, 24, 8, 128256, 131072),
        head_dim=128,
        rms_norm_eps=1e-5,
        rope_theta=500000.0,
        rope_scaling={**_LLAMA_3_ROPE, "factor": 32.0},
        tie_word_embeddings=True,
    ),
    "llama-3.1-8b": _config(
        "LlamaForCausalLM",
        (4096, 14336, 32, 32, 8, 128256, 131072),
        rms_norm_eps=1e-5,
        rope_theta=500000.0,
        rope_scaling=_LLAMA_3_ROPE,
        tie_word_embeddings=False,
    ),
    "qwen2.5-0.5b": _config(
        "Qwen2ForCausalLM",
        (896, 4864, 24, 14, 2, 151936, 32768),
        rope_theta=1000000.0,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
    ),
    "qwen2.5-1.5b": _config(
        "Qwen2ForCausalLM",
        (1536, 8960, 28, 12, 2, 151936, 131072),
        rope_theta=1000000.0,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
    ),
    "qwen3-0.6b": _config(
        "Qwen3ForCausalLM",
        (1024, 3072, 28, 16, 8, 151936, 40960),
        head_dim=128,
        rope_theta=1000000.0,
        rms_norm_eps=1e-6,
        tie_word_embeddings=True,
    ),
    "internlm2-1.8b": _config(
        "InternLM2ForCausalLM",
        (2048, 8192, 24, 16, 8, 92544, 32768),
        rope_theta=1000000.0,
        rope_scaling={"type": "dynamic", "factor": 2.0},
        rms_norm_eps=1e-5,
        tie_word_embeddings=False,
    ),
}


def find_preset(name: str) -> Mapping[str, Any]:
    """The config.json of a preset; ModelNotFound lists those there are."""
    if name not in PRESETS:
        raise ModelNotFound(f"preset {name!r} does not exist; there are {', '.join(PRESETS)}")
    return PRESETS[name]


def preset_config(preset: str) -> ModelConfig:
    """The configuration behind a preset's name; ModelNotFound if there is none."""
    metadata = find_preset(preset)
    return find_family("hf", metadata).read_hf_config(metadata)
