"""Llama 2, 3, 3.1, 3.2, SmolLM2, Mistral, DeepSeek-R1-Distill-Llama."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from lite_llama.models.config import ModelConfig
from lite_llama.models.families.family import HF_PARAMETERS, PERMUTED_GGUF_PARAMETERS, Family
from lite_llama.models.families.fields import flag, read_common_gguf, read_common_hf, read_window


def read_hf_config(config: Mapping[str, Any]) -> ModelConfig:
    """config.json of LlamaForCausalLM or MistralForCausalLM."""
    bias = flag(config, "attention_bias", default=False)
    # Llama's own code does not look at a window.
    window = read_window(config) if "MistralForCausalLM" in config["architectures"] else None
    return replace(read_common_hf(config, "llama"), qkv_bias=bias, o_bias=bias, window=window)


def read_gguf_config(metadata: Mapping[str, Any]) -> ModelConfig:
    """Metadata of architecture `llama`."""
    return read_common_gguf(metadata, "llama")


FAMILY = Family(
    name="llama",
    hf_architectures=("LlamaForCausalLM", "MistralForCausalLM"),
    gguf_architectures=("llama",),
    read_hf_config=read_hf_config,
    read_gguf_config=read_gguf_config,
    hf_parameters=HF_PARAMETERS,
    gguf_parameters=PERMUTED_GGUF_PARAMETERS,
)
