"""InternLM2 and InternLM2.5 (1.8B, 7B, 20B): llama with other names and one grouped wqkv."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from lite_llama.models.config import ModelConfig
from lite_llama.models.families.family import PERMUTED_GGUF_PARAMETERS, Family, ParameterMap, parts
from lite_llama.models.families.fields import flag, read_common_gguf, read_common_hf


def read_hf_config(config: Mapping[str, Any]) -> ModelConfig:
    """config.json of InternLM2ForCausalLM; its `bias` switches the biases of wqkv and wo."""
    bias = flag(config, "bias", default=False)
    return replace(read_common_hf(config, "internlm2"), qkv_bias=bias, o_bias=bias)


def read_gguf_config(metadata: Mapping[str, Any]) -> ModelConfig:
    """Metadata of architecture `internlm2`."""
    return read_common_gguf(metadata, "internlm2")


def ungrouped_rows(config: ModelConfig, num_rows: int) -> npt.NDArray[np.int64]:
    """wqkv's rows [kv_heads, q_per_kv + 2, head_dim] in the order q, k, v.

    Source: modeling_internlm2.py, `rearrange(qkv_states, "b q (h gs d) -> b q h gs d")`.
    """
    grouped = np.arange(num_rows).reshape(config.num_kv_heads, -1, config.head_dim)
    return np.concatenate(
        (grouped[:, :-2].reshape(-1), grouped[:, -2].reshape(-1), grouped[:, -1].reshape(-1))
    )


HF_PARAMETERS: ParameterMap = {
    "embedding.weight": parts("model.tok_embeddings.weight"),
    "layers.{i}.attention_norm.weight": parts("model.layers.{i}.attention_norm.weight"),
    "layers.{i}.qkv.weight": parts("model.layers.{i}.attention.wqkv.weight", rows=ungrouped_rows),
    "layers.{i}.qkv.bias": parts("model.layers.{i}.attention.wqkv.bias", rows=ungrouped_rows),
    "layers.{i}.o.weight": parts("model.layers.{i}.attention.wo.weight"),
    "layers.{i}.o.bias": parts("model.layers.{i}.attention.wo.bias"),
    "layers.{i}.mlp_norm.weight": parts("model.layers.{i}.ffn_norm.weight"),
    "layers.{i}.gate_up.weight": parts(
        "model.layers.{i}.feed_forward.w1.weight", "model.layers.{i}.feed_forward.w3.weight"
    ),
    "layers.{i}.down.weight": parts("model.layers.{i}.feed_forward.w2.weight"),
    "final_norm.weight": parts("model.norm.weight"),
    "head.weight": parts("output.weight"),
}

FAMILY = Family(
    name="internlm2",
    hf_architectures=("InternLM2ForCausalLM",),
    gguf_architectures=("internlm2",),
    read_hf_config=read_hf_config,
    read_gguf_config=read_gguf_config,
    hf_parameters=HF_PARAMETERS,
    gguf_parameters=PERMUTED_GGUF_PARAMETERS,
)
