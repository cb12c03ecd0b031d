"""Random two-layer models: built with transformers, saved as a directory or as a GGUF file."""

import json
from pathlib import Path
from typing import Any

import gguf
import torch
import transformers
from gguf import GGMLQuantizationType as QType
from safetensors.torch import save_file
from torch import Tensor

VOCAB = 260
HIDDEN = 64
CONFIG_CLASSES = {
    "llama": transformers.LlamaConfig,
    "mistral": transformers.MistralConfig,
    "qwen2": transformers.Qwen2Config,
    "qwen3": transformers.Qwen3Config,
}


def model(family: str = "llama", seed: int = 0, **changes: Any) -> Any:
    """A transformers model with random weights, biases and norms, in float32."""
    settings: dict[str, Any] = {
        "vocab_size": VOCAB,
        "hidden_size": HIDDEN,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 128,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False,
        "attn_implementation": "eager",
        **({"head_dim": 16} if family == "qwen3" else {}),
        **({"sliding_window": None} if family == "mistral" else {}),
        **changes,
    }
    config = CONFIG_CLASSES[family](**settings)
    built = transformers.AutoModelForCausalLM.from_config(
        config, attn_implementation="eager", dtype=torch.float32
    )
    generator = torch.Generator().manual_seed(seed)
    for name, parameter in built.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        if "norm" in name:
            parameter.data = 1.0 + 0.3 * noise
        elif name.endswith("bias") or "embed" in name:
            parameter.data = 0.5 * noise
        else:
            parameter.data = 1.5 * noise / parameter.shape[1] ** 0.5
    built.tie_weights()
    return built.eval()


def save(built: Any, path: Path, **options: Any) -> Path:
    """Save as a Hugging Face directory."""
    built.save_pretrained(path, **options)
    return path


def save_as_internlm2(built: Any, path: Path) -> Path:
    """Save a llama as an InternLM2 directory: other names, and q, k and v grouped in one tensor."""
    config = built.config
    biased = config.attention_bias
    names = {
        "input_layernorm": "attention_norm",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "feed_forward.w1",
        "mlp.up_proj": "feed_forward.w3",
        "mlp.down_proj": "feed_forward.w2",
        "self_attn.o_proj": "attention.wo",
        "embed_tokens": "tok_embeddings",
        "lm_head": "output",
    }
    renamed = {}
    for name, values in built.state_dict().items():
        new = name
        for old, other in names.items():
            new = new.replace(old, other)
        renamed[new] = values.contiguous()
    for i in range(config.num_hidden_layers):
        for kind in ("weight", "bias") if biased else ("weight",):
            q, k, v = (
                renamed.pop(f"model.layers.{i}.self_attn.{x}_proj.{kind}").unflatten(
                    0, (config.num_key_value_heads, -1, config.head_dim)
                )
                for x in "qkv"
            )
            grouped = torch.cat((q, k, v), dim=1).flatten(0, 2)
            renamed[f"model.layers.{i}.attention.wqkv.{kind}"] = grouped.contiguous()
    save(built, path)
    save_file(renamed, path / "model.safetensors")
    settings = json.loads((path / "config.json").read_text())
    settings |= {"architectures": ["InternLM2ForCausalLM"], "bias": biased, "head_dim": None}
    (path / "config.json").write_text(json.dumps(settings))
    return path


def token_ids(count: int, seed: int = 1) -> list[int]:
    ids = torch.randint(3, VOCAB, (count,), generator=torch.Generator().manual_seed(seed))
    return [int(token) for token in ids]


@torch.no_grad()
def oracle_logits(built: Any, ids: list[int]) -> Tensor:
    """float32 [num_tokens, vocab], by transformers."""
    logits: Tensor = built(torch.tensor([ids])).logits[0]
    return logits


# transformers' names -> llama.cpp's, within a layer.
_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name: str) -> str:
    """`model.layers.0.mlp.up_proj.weight` -> `blk.0.ffn_up.weight`."""
    outer = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    stem, _, kind = name.rpartition(".")
    if stem in outer:
        return f"{outer[stem]}.{kind}"
    layer, _, rest = stem.removeprefix("model.layers.").partition(".")
    return f"blk.{layer}.{_LAYER_NAMES[rest]}.{kind}"


def permuted(rows: Tensor, num_heads: int) -> Tensor:
    """llama.cpp's reordering of q and k: each head's two halves become neighbours."""
    halves = rows.reshape(num_heads, 2, rows.shape[0] // num_heads // 2, *rows.shape[1:])
    return halves.transpose(1, 2).reshape(rows.shape)


def gguf_tensors(built: Any, *, permute: bool) -> dict[str, Tensor]:
    """Every tensor as llama.cpp's converter names and orders it."""
    config = built.config
    tensors = {}
    for name, values in built.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        if permute and (".q_proj." in name or ".k_proj." in name):
            heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
            values = permuted(values, heads)
        tensors[gguf_name(name)] = values
    return tensors


def write_gguf(
    path: Path,
    built: Any,
    arch: str,
    *,
    formats: dict[str, QType] | None = None,
    extra_tensors: dict[str, Tensor] | None = None,
    changes: dict[str, Any] | None = None,
) -> dict[str, Tensor]:
    """Write a GGUF file with a SentencePiece vocabulary; returns its tensors as stored.

    `formats` maps a part of a matrix's name ("" = all) to the format it is quantised to.
    """
    config = built.config
    writer = gguf.GGUFWriter(path, arch)
    options: dict[str, Any] = {
        "head_count_kv": config.num_key_value_heads,
        "rope_theta": config.rope_parameters["rope_theta"],
        "vocab": config.vocab_size,
        **(changes or {}),
    }
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(options["head_count_kv"])
    writer.add_rope_freq_base(options["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    if getattr(config, "head_dim", None):
        writer.add_key_length(config.head_dim)
        writer.add_value_length(config.head_dim)
    if getattr(config, "sliding_window", None):
        writer.add_sliding_window(config.sliding_window)
    if "rope_scaling" in options:
        kind, factor, original = options["rope_scaling"]
        writer.add_rope_scaling_type(kind)
        writer.add_rope_scaling_factor(factor)
        writer.add_rope_scaling_orig_ctx_len(original)
    add_vocabulary(writer, options["vocab"])
    tensors = gguf_tensors(built, permute=arch in ("llama", "internlm2")) | (extra_tensors or {})
    stored = {}
    for name, values in tensors.items():
        chosen = [qtype for part, qtype in (formats or {}).items() if part in name]
        if values.dim() == 1 or not chosen:
            writer.add_tensor(name, values.numpy())
            stored[name] = values
            continue
        data = gguf.quantize(values.numpy(), chosen[-1])
        writer.add_tensor(name, data, raw_dtype=chosen[-1])
        stored[name] = torch.from_numpy(gguf.dequantize(data, chosen[-1]))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return stored


def add_vocabulary(writer: gguf.GGUFWriter, size: int) -> None:
    """`size` tokens: unknown, start, end, then words."""
    writer.add_tokenizer_model("llama")
    writer.add_token_list(["<unk>", "<s>", "</s>", *(f"▁w{i}" for i in range(3, size))])
    writer.add_token_scores([0.0] * size)
    writer.add_token_types([2, 3, 3, *([1] * (size - 3))])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)


def load_stored(built: Any, stored: dict[str, Tensor], *, permute: bool) -> None:
    """Put the tensors of a GGUF file back into the transformers model."""
    config = built.config
    state = {}
    for name in built.state_dict():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        values = stored[gguf_name(name)]
        if permute and (".q_proj." in name or ".k_proj." in name):
            heads = config.num_attention_heads if ".q_proj." in name else config.num_key_value_heads
            pairs = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
            values = pairs.transpose(1, 2).reshape(values.shape)
        state[name] = values
    built.load_state_dict(state, strict=not config.tie_word_embeddings)
    built.tie_weights()
