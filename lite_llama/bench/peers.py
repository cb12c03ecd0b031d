"""Other engines on the same model, for comparison in one process."""

import time
from typing import Any

import torch
from torch import Tensor

from lite_llama.errors import ConfigError
from lite_llama.layouts.dense import DenseWeight
from lite_llama.models.config import RopeConfig
from lite_llama.models.decoder import Decoder


class Transformers:
    """`transformers` generating greedily with the weights of a decoder (llama family only)."""

    def __init__(self, decoder: Decoder, dtype: torch.dtype) -> None:
        try:
            from transformers import LlamaConfig, LlamaForCausalLM
        except ImportError:
            raise ConfigError(
                "--compare transformers needs transformers; pip install transformers"
            ) from None
        config = decoder.config
        if config.family != "llama" or config.rope.kind not in ("none", "llama3"):
            raise ConfigError(
                f"--compare transformers is {config.family} with {config.rope.kind} rope, "
                "implemented: llama with none or llama3"
            )
        hf_config = LlamaConfig(
            vocab_size=config.vocab_size,
            hidden_size=config.hidden_size,
            intermediate_size=config.intermediate_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_q_heads,
            num_key_value_heads=config.num_kv_heads,
            head_dim=config.head_dim,
            max_position_embeddings=config.max_positions,
            rms_norm_eps=config.norm_eps,
            rope_parameters=_rope(config.rope),
            tie_word_embeddings=config.tied_head,
        )
        with torch.device("meta"):
            model: Any = LlamaForCausalLM(hf_config)  # type: ignore[no-untyped-call,unused-ignore]
        device = decoder.final_norm.weight.device
        model = model.to_empty(device=device).to(dtype)
        model.model.rotary_emb = type(model.model.rotary_emb)(hf_config).to(device)
        model.load_state_dict(_state(decoder), strict=True)
        self._model = model.eval()

    @torch.inference_mode()
    def measure(
        self, prompts: list[list[int]], gen_len: int
    ) -> tuple[float, float, list[list[int]]]:
        """(seconds to the first token, seconds a token after it, tokens) of one generation."""
        device = self._model.device
        ids = torch.tensor(prompts, device=device)
        first = self._timed(ids, 1)[0]
        whole, tokens = self._timed(ids, gen_len)
        return first, (whole - first) / (gen_len - 1), tokens[:, ids.shape[1] :].tolist()

    def _timed(self, ids: Tensor, num_tokens: int) -> tuple[float, Tensor]:
        begin = time.perf_counter()
        tokens = self._model.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=num_tokens,
            min_new_tokens=num_tokens,
            do_sample=False,
            pad_token_id=0,
        )
        tokens.tolist()  # waits for the device
        return time.perf_counter() - begin, tokens


def _rope(rope: RopeConfig) -> dict[str, Any]:
    if rope.kind == "none":
        return {"rope_type": "default", "rope_theta": rope.theta}
    return {
        "rope_type": "llama3",
        "rope_theta": rope.theta,
        "factor": rope.factor,
        "low_freq_factor": rope.low_freq_factor,
        "high_freq_factor": rope.high_freq_factor,
        "original_max_position_embeddings": rope.original_max_positions,
    }


def _state(decoder: Decoder) -> dict[str, Tensor]:
    """The decoder's dense weights under transformers' names."""
    config = decoder.config
    if not isinstance(decoder.embedding, Tensor):
        raise ConfigError("--compare transformers needs dense weights; load with dtype float32")
    state = {
        "model.embed_tokens.weight": decoder.embedding,
        "model.norm.weight": decoder.final_norm.weight,
        "lm_head.weight": _values(decoder.head.weight),
    }
    sizes = [config.q_size, config.kv_size, config.kv_size]
    for i, block in enumerate(decoder.blocks):
        at = f"model.layers.{i}."
        q, k, v = torch.split(_values(block.attention.qkv.weight), sizes)
        gate, up = _values(block.mlp.gate_up.weight).chunk(2)
        state |= {
            at + "self_attn.q_proj.weight": q,
            at + "self_attn.k_proj.weight": k,
            at + "self_attn.v_proj.weight": v,
            at + "self_attn.o_proj.weight": _values(block.attention.o.weight),
            at + "mlp.gate_proj.weight": gate,
            at + "mlp.up_proj.weight": up,
            at + "mlp.down_proj.weight": _values(block.mlp.down.weight),
            at + "input_layernorm.weight": block.attention_norm.weight,
            at + "post_attention_layernorm.weight": block.mlp_norm.weight,
        }
    return state


def _values(weight: Any) -> Tensor:
    if not isinstance(weight, DenseWeight):
        raise ConfigError("--compare transformers needs dense weights; load with dtype float32")
    return weight.values
