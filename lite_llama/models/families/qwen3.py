"""Qwen3, dense: normalised q and k instead of biases."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lite_llama.models.config import ModelConfig
from lite_llama.models.families.family import GGUF_PARAMETERS, HF_PARAMETERS, Family
from lite_llama.models.families.fields import flag, read_common_gguf, read_common_hf


def read_hf_config(config: Mapping[str, Any]) -> ModelConfig:
    """config.json of Qwen3ForCausalLM, whose head_dim is 128 where it gives none."""
    bias = flag(config, "attention_bias", default=False)
    with_head_dim = {**config, "head_dim": config.get("head_dim") or 128}
    return replace(read_common_hf(with_head_dim, "qwen3"), qk_norm=True, qkv_bias=bias, o_bias=bias)


def read_gguf_config(metadata: Mapping[str, Any]) -> ModelConfig:
    """Metadata of architecture `qwen3`."""
    return replace(read_common_gguf(metadata, "qwen3"), qk_norm=True)


FAMILY = Family(
    name="qwen3",
    hf_architectures=("Qwen3ForCausalLM",),
    gguf_architectures=("qwen3",),
    read_hf_config=read_hf_config,
    read_gguf_config=read_gguf_config,
    hf_parameters=HF_PARAMETERS,
    gguf_parameters=GGUF_PARAMETERS,
)
