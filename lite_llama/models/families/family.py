"""What a family file declares: its configuration readers and where each parameter comes from."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from lite_llama.models.config import ModelConfig

RowOrder = Callable[[ModelConfig, int], npt.NDArray[np.int64]]


@dataclass(frozen=True)
class Part:
    """One source tensor, `{i}` standing for the layer, or some of its rows in another order.

    `rows(config, num_rows)` lists the source rows to take. A permutation of whole rows is the only
    transform there is, so that it works on every format without decoding.
    """

    name: str
    rows: RowOrder | None = None


# Canonical name -> parts, concatenated along their rows.
ParameterMap = Mapping[str, tuple[Part, ...]]


@dataclass(frozen=True)
class Family:
    """A model family as data: names it answers to, configuration readers, parameter maps."""

    name: str
    hf_architectures: tuple[str, ...]
    gguf_architectures: tuple[str, ...]
    read_hf_config: Callable[[Mapping[str, Any]], ModelConfig]
    read_gguf_config: Callable[[Mapping[str, Any]], ModelConfig]
    hf_parameters: ParameterMap
    gguf_parameters: ParameterMap


def half_split_rows(config: ModelConfig, num_rows: int) -> npt.NDArray[np.int64]:
    """Undo llama.cpp's row order of q and k.

    Its converter reorders each head's rows from two halves to interleaved pairs, because its rope
    rotates neighbours (llama.cpp, conversion/llama.py, `permute`): row 2 j + h of a head there is
    row h · head_dim / 2 + j here.
    """
    rows = np.arange(num_rows).reshape(-1, config.head_dim // 2, 2)
    return rows.swapaxes(1, 2).reshape(-1)


def parts(*names: str, rows: RowOrder | None = None) -> tuple[Part, ...]:
    """Parts of several source tensors that share one row order."""
    return tuple(Part(name, rows) for name in names)


HF_PARAMETERS: ParameterMap = {
    "embedding.weight": parts("model.embed_tokens.weight"),
    "layers.{i}.attention_norm.weight": parts("model.layers.{i}.input_layernorm.weight"),
    **{
        f"layers.{{i}}.qkv.{kind}": parts(
            f"model.layers.{{i}}.self_attn.q_proj.{kind}",
            f"model.layers.{{i}}.self_attn.k_proj.{kind}",
            f"model.layers.{{i}}.self_attn.v_proj.{kind}",
        )
        for kind in ("weight", "bias")
    },
    "layers.{i}.q_norm.weight": parts("model.layers.{i}.self_attn.q_norm.weight"),
    "layers.{i}.k_norm.weight": parts("model.layers.{i}.self_attn.k_norm.weight"),
    "layers.{i}.o.weight": parts("model.layers.{i}.self_attn.o_proj.weight"),
    "layers.{i}.o.bias": parts("model.layers.{i}.self_attn.o_proj.bias"),
    "layers.{i}.mlp_norm.weight": parts("model.layers.{i}.post_attention_layernorm.weight"),
    "layers.{i}.gate_up.weight": parts(
        "model.layers.{i}.mlp.gate_proj.weight", "model.layers.{i}.mlp.up_proj.weight"
    ),
    "layers.{i}.down.weight": parts("model.layers.{i}.mlp.down_proj.weight"),
    "final_norm.weight": parts("model.norm.weight"),
    "head.weight": parts("lm_head.weight"),
}

GGUF_PARAMETERS: ParameterMap = {
    "embedding.weight": parts("token_embd.weight"),
    "layers.{i}.attention_norm.weight": parts("blk.{i}.attn_norm.weight"),
    **{
        f"layers.{{i}}.qkv.{kind}": parts(
            f"blk.{{i}}.attn_q.{kind}", f"blk.{{i}}.attn_k.{kind}", f"blk.{{i}}.attn_v.{kind}"
        )
        for kind in ("weight", "bias")
    },
    "layers.{i}.q_norm.weight": parts("blk.{i}.attn_q_norm.weight"),
    "layers.{i}.k_norm.weight": parts("blk.{i}.attn_k_norm.weight"),
    "layers.{i}.o.weight": parts("blk.{i}.attn_output.weight"),
    "layers.{i}.o.bias": parts("blk.{i}.attn_output.bias"),
    "layers.{i}.mlp_norm.weight": parts("blk.{i}.ffn_norm.weight"),
    "layers.{i}.gate_up.weight": parts("blk.{i}.ffn_gate.weight", "blk.{i}.ffn_up.weight"),
    "layers.{i}.down.weight": parts("blk.{i}.ffn_down.weight"),
    "final_norm.weight": parts("output_norm.weight"),
    "head.weight": parts("output.weight"),
}

# Architectures whose q and k rows llama.cpp's converter reorders (llama, internlm2).
PERMUTED_GGUF_PARAMETERS: ParameterMap = {
    **GGUF_PARAMETERS,
    **{
        f"layers.{{i}}.qkv.{kind}": (
            *parts(f"blk.{{i}}.attn_q.{kind}", f"blk.{{i}}.attn_k.{kind}", rows=half_split_rows),
            Part(f"blk.{{i}}.attn_v.{kind}"),
        )
        for kind in ("weight", "bias")
    },
}
