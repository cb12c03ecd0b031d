"""Qwen2, Qwen2.5, DeepSeek-R1-Distill-Qwen: llama with biases on q, k and v."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lite_llama.models.config import ModelConfig
from lite_llama.models.families.family import GGUF_PARAMETERS, HF_PARAMETERS, Family
from lite_llama.models.families.fields import read_common_gguf, read_common_hf


def read_hf_config(config: Mapping[str, Any]) -> ModelConfig:
    """config.json of Qwen2ForCausalLM; `sliding_window` is inert there unless it is switched on."""
    return replace(read_common_hf(config, "qwen2"), qkv_bias=True)


def read_gguf_config(metadata: Mapping[str, Any]) -> ModelConfig:
    """Metadata of architecture `qwen2`."""
    return replace(read_common_gguf(metadata, "qwen2"), qkv_bias=True)


FAMILY = Family(
    name="qwen2",
    hf_architectures=("Qwen2ForCausalLM",),
    gguf_architectures=("qwen2",),
    read_hf_config=read_hf_config,
    read_gguf_config=read_gguf_config,
    hf_parameters=HF_PARAMETERS,
    gguf_parameters=GGUF_PARAMETERS,
)
