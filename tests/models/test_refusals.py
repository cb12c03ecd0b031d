"""What the decoder does not implement is refused by name, never ignored."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from lite_llama import LLM, LiteLlamaError, ModelFileError, UnsupportedModel
from tests.models import tiny
from tests.models.test_parity import rewrite_config


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny.save(tiny.model(), tmp_path_factory.mktemp("llama"))


def copied(saved: Path, tmp_path: Path) -> Path:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((saved / name).read_bytes())
    return tmp_path


def refusal(path: Path, kind: type[LiteLlamaError]) -> str:
    with pytest.raises(kind) as caught:
        LLM(path, dtype="float32", device="cpu")
    message = str(caught.value)
    assert type(caught.value) is kind
    assert "\n" not in message
    return message


UNSUPPORTED: list[tuple[dict[str, Any], tuple[str, ...]]] = [
    ({"hidden_act": "gelu"}, ("hidden_act", "gelu")),
    ({"mlp_bias": True}, ("mlp_bias", "True")),
    ({"pretraining_tp": 2}, ("pretraining_tp", "2")),
    ({"quantization_config": {"quant_method": "awq"}}, ("quantization_config", "awq")),
    ({"partial_rotary_factor": 0.5}, ("partial_rotary_factor", "0.5")),
    ({"use_sliding_window": True}, ("use_sliding_window", "True")),
    ({"clip_qkv": 8.0}, ("clip_qkv", "8.0")),
    ({"logit_scale": 0.5}, ("logit_scale", "0.5")),
    (
        {"layer_types": ["full_attention", "sliding_attention"]},
        ("layer_types", "sliding_attention"),
    ),
    ({"layer_types": 5}, ("layer_types", "5")),
    ({"architectures": ["MambaForCausalLM"]}, ("MambaForCausalLM",)),
    (
        {"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4, "factor": 2.0}},
        ("rope type", "longrope"),
    ),
    (
        {"rope_parameters": None, "rope_scaling": {"type": "su", "factor": 2.0}},
        ("rope type", "su"),
    ),
    (
        {"rope_parameters": {"rope_type": "default", "partial_rotary_factor": 0.25}},
        ("partial_rotary_factor", "0.25"),
    ),
    (
        {"rope_parameters": {"rope_type": "yarn", "factor": 2.0, "mscale": 0.7}},
        ("mscale", "0.7"),
    ),
]


@pytest.mark.parametrize(
    ("changes", "words"), UNSUPPORTED, ids=[" ".join(words) for _, words in UNSUPPORTED]
)
def test_an_unsupported_value_is_named(
    saved: Path, tmp_path: Path, changes: dict[str, Any], words: tuple[str, ...]
) -> None:
    path = copied(saved, tmp_path)
    rewrite_config(path, **changes)
    message = refusal(path, UnsupportedModel)
    assert all(word in message for word in words), message


BROKEN: list[tuple[dict[str, Any], str]] = [
    ({"hidden_size": None}, "hidden_size"),
    ({"hidden_size": 0}, "hidden_size"),
    ({"hidden_size": "64"}, "hidden_size"),
    ({"hidden_size": True}, "hidden_size"),
    ({"vocab_size": -1}, "vocab_size"),
    ({"num_hidden_layers": 2.5}, "num_hidden_layers"),
    ({"max_position_embeddings": 2**40}, "max_position_embeddings"),
    ({"num_attention_heads": 1000}, "q_proj.weight"),
    ({"num_attention_heads": 1000, "head_dim": None}, "head_dim is 0"),
    ({"num_key_value_heads": 3}, "multiple of the 3 key heads"),
    ({"head_dim": 15}, "head_dim"),
    ({"rms_norm_eps": 0.0}, "rms_norm_eps"),
    ({"rms_norm_eps": "1e-5"}, "rms_norm_eps"),
    ({"tie_word_embeddings": "no"}, "tie_word_embeddings"),
    ({"attention_bias": 1}, "attention_bias"),
    ({"rope_parameters": ["linear"]}, "rope"),
    ({"rope_parameters": {"rope_type": "linear", "rope_theta": 1e4}}, "factor"),
    ({"rope_parameters": {"rope_type": "default", "rope_theta": -1.0}}, "rope_theta"),
    ({"architectures": []}, "architecture"),
    ({"architectures": 7}, "architecture"),
]


@pytest.mark.parametrize(
    ("changes", "word"), BROKEN, ids=[json.dumps(changes) for changes, _ in BROKEN]
)
def test_a_broken_value_is_named(
    saved: Path, tmp_path: Path, changes: dict[str, Any], word: str
) -> None:
    path = copied(saved, tmp_path)
    rewrite_config(path, **changes)
    assert word in refusal(path, ModelFileError)


def change_tensors(path: Path, changes: dict[str, Tensor | None]) -> None:
    """Replace, add, or with None remove tensors."""
    tensors = {**load_file(path / "model.safetensors"), **changes}
    kept = {name: values for name, values in tensors.items() if values is not None}
    save_file(kept, path / "model.safetensors")


Q0 = "model.layers.0.self_attn.q_proj.weight"
K0 = "model.layers.0.self_attn.k_proj.weight"
TENSORS: dict[str, tuple[dict[str, Tensor | None], str]] = {
    "missing": ({"model.norm.weight": None}, "model.norm.weight"),
    "missing in a layer": ({K0: None}, K0),
    "missing head": ({"lm_head.weight": None}, "lm_head.weight"),
    "leftover": ({"model.layers.0.extra.weight": torch.ones(2)}, "model.layers.0.extra.weight"),
    "leftover layer": (
        {"model.layers.2.input_layernorm.weight": torch.ones(64)},
        "model.layers.2.input_layernorm.weight",
    ),
    "leftover bias": ({Q0.replace("weight", "bias"): torch.ones(64)}, "q_proj.bias"),
    "wrong columns": ({Q0: torch.ones(64, 60)}, Q0),
    "wrong rank": ({"model.norm.weight": torch.ones(64, 1)}, "model.norm.weight"),
    "scalar": ({"model.norm.weight": torch.tensor(1.0)}, "model.norm.weight"),
    # Their rows sum to the right number.
    "q and k exchanged": ({Q0: torch.ones(32, 64), K0: torch.ones(64, 64)}, Q0),
    "vocabulary of another size": (
        {"model.embed_tokens.weight": torch.ones(tiny.VOCAB + 1, 64)},
        "model.embed_tokens.weight",
    ),
}


@pytest.mark.parametrize("name", TENSORS)
def test_a_wrong_tensor_is_named(saved: Path, tmp_path: Path, name: str) -> None:
    changes, word = TENSORS[name]
    path = copied(saved, tmp_path)
    change_tensors(path, changes)
    assert word in refusal(path, ModelFileError)


def test_a_tied_head_may_be_stored_again(tmp_path: Path) -> None:
    built = tiny.model(tie_word_embeddings=True)
    path = tiny.save(built, tmp_path)
    change_tensors(path, {"lm_head.weight": built.lm_head.weight.data.clone()})
    ids = tiny.token_ids(9)
    with LLM(path, dtype="float32", device="cpu") as llm:
        expected = tiny.oracle_logits(built, ids)
        torch.testing.assert_close(llm.logits(ids), expected, atol=1e-4, rtol=0)


def test_redundant_frequencies_are_passed_over(saved: Path, tmp_path: Path) -> None:
    path = copied(saved, tmp_path)
    change_tensors(path, {"model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(8)})
    with LLM(path, dtype="float32", device="cpu") as llm:
        assert llm.logits([5]).shape == (1, tiny.VOCAB)


def test_an_unknown_gguf_architecture_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    tiny.write_gguf(path, tiny.model(), "gptneox")
    assert "'gptneox'" in refusal(path, UnsupportedModel)


def test_a_gguf_vocabulary_of_another_size_than_the_embedding_is_named(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    tiny.write_gguf(path, tiny.model(), "llama", changes={"vocab": tiny.VOCAB - 1})
    message = refusal(path, ModelFileError)
    assert "token_embd.weight" in message
    assert str(tiny.VOCAB - 1) in message


def test_a_gguf_file_without_vocabulary_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny, "add_vocabulary", lambda *_: None)
    path = tmp_path / "model.gguf"
    tiny.write_gguf(path, tiny.model(), "llama")
    assert "tokenizer.ggml.tokens" in refusal(path, ModelFileError)


def test_rope_factors_of_another_length_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    extra = {"rope_freqs.weight": torch.ones(7)}
    tiny.write_gguf(path, tiny.model(), "llama", extra_tensors=extra)
    assert "rope_freqs.weight" in refusal(path, ModelFileError)


def test_key_heads_that_do_not_divide_are_refused_in_gguf_too(tmp_path: Path) -> None:
    path = tmp_path / "model.gguf"
    tiny.write_gguf(path, tiny.model(), "llama", changes={"head_count_kv": 3})
    assert "3 key heads" in refusal(path, ModelFileError)
