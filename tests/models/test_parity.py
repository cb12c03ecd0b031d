"""Two-layer random models give the logits that transformers gives, to float32 accuracy."""

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from lite_llama import LLM
from tests.models import tiny

LENGTH = 40
TOLERANCE = 1e-4

LLAMA3 = {
    "rope_type": "llama3",
    "factor": 4.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 32,
}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}

MODELS: dict[str, tuple[str, dict[str, Any]]] = {
    "llama": ("llama", {}),
    "llama, tied": ("llama", {"tie_word_embeddings": True}),
    "llama, biases": ("llama", {"attention_bias": True}),
    "llama, 9 heads of 8 on 3": (
        "llama",
        {"num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 72},
    ),
    "llama, 9 heads of 64 on 3": (
        "llama",
        {"num_attention_heads": 9, "num_key_value_heads": 3, "hidden_size": 72, "head_dim": 64},
    ),
    "llama, one key head": ("llama", {"num_key_value_heads": 1}),
    "llama, as many key heads as query heads": ("llama", {"num_key_value_heads": 4}),
    "llama, large epsilon": ("llama", {"rms_norm_eps": 0.1}),
    "mistral": ("mistral", {}),
    "mistral, window": ("mistral", {"sliding_window": 7, "head_dim": 24}),
    "mistral, window longer than the text": ("mistral", {"sliding_window": 64}),
    "qwen2": ("qwen2", {}),
    "qwen2, tied": ("qwen2", {"tie_word_embeddings": True}),
    "qwen2, inert window": ("qwen2", {"sliding_window": 4, "use_sliding_window": False}),
    "qwen3": ("qwen3", {"head_dim": 24}),
    "qwen3, tied": ("qwen3", {"tie_word_embeddings": True}),
    "qwen3, biases": ("qwen3", {"attention_bias": True}),
    "rope theta": ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 5e5}}),
    "rope linear": (
        "llama",
        {"rope_parameters": {"rope_type": "linear", "factor": 3.0, "rope_theta": 1e4}},
    ),
    "rope dynamic, within": (
        "llama",
        {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}},
    ),
    "rope llama3": ("llama", {"rope_parameters": {**LLAMA3, "rope_theta": 5e5}}),
    "rope yarn": ("qwen2", {"rope_parameters": {**YARN, "rope_theta": 1e4}}),
    "rope yarn, attention_factor": (
        "llama",
        {"rope_parameters": {**YARN, "rope_theta": 1e4, "attention_factor": 0.8}},
    ),
    "rope yarn, not truncated": (
        "qwen3",
        {"rope_parameters": {**YARN, "rope_theta": 1e6, "truncate": False}},
    ),
    "rope yarn, betas": (
        "llama",
        {"rope_parameters": {**YARN, "rope_theta": 1e4, "beta_fast": 16.0, "beta_slow": 2.0}},
    ),
}


def assert_equal_logits(path: Path, built: Any, length: int = LENGTH, **settings: Any) -> None:
    ids = tiny.token_ids(length)
    expected = tiny.oracle_logits(built, ids)
    with LLM(path, dtype="float32", device="cpu", **settings) as llm:
        given = llm.logits(ids)
    assert expected.std() > 0.3, "the logits hardly vary: the comparison would show nothing"
    torch.testing.assert_close(given, expected, atol=TOLERANCE, rtol=0)


def rewrite_config(path: Path, **changes: Any) -> None:
    """Change config.json; a value of None removes the key."""
    file = path / "config.json"
    config = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in config.items() if value is not None}))


@pytest.mark.parametrize("name", MODELS)
def test_logits_are_those_of_transformers(name: str, tmp_path: Path) -> None:
    family, changes = MODELS[name]
    built = tiny.model(family, **changes)
    assert_equal_logits(tiny.save(built, tmp_path), built)


def test_dynamic_rope_reaches_beyond_the_original_context(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    built = tiny.model(rope_parameters=rope, max_position_embeddings=24)
    assert_equal_logits(tiny.save(built, tmp_path), built, max_model_len=LENGTH)


def test_dynamic_rope_serves_its_original_context_unless_asked_for_more(tmp_path: Path) -> None:
    rope = {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}
    built = tiny.model(rope_parameters=rope, max_position_embeddings=24)
    with LLM(tiny.save(built, tmp_path), dtype="float32", device="cpu") as llm:
        assert llm.plan.max_model_len == 24
        assert llm.model_config.max_positions == 48


@pytest.mark.parametrize("kind_key", ["type", "rope_type"])
def test_old_and_new_spelling_of_rope_scaling_are_one(tmp_path: Path, kind_key: str) -> None:
    built = tiny.model(rope_parameters={**YARN, "rope_theta": 5e5})
    tiny.save(built, tmp_path)
    scaling = {key: value for key, value in YARN.items() if key != "rope_type"}
    rewrite_config(
        tmp_path,
        rope_parameters=None,
        rope_theta=5e5,
        rope_scaling={**scaling, kind_key: "yarn"},
    )
    assert_equal_logits(tmp_path, built)


def test_a_model_in_several_files_is_the_same_model(tmp_path: Path) -> None:
    built = tiny.model("qwen2")
    tiny.save(built, tmp_path, max_shard_size="60KB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2
    assert_equal_logits(tmp_path, built)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_file_is_decoded_exactly(tmp_path: Path, dtype: torch.dtype) -> None:
    built = tiny.model()
    for parameter in built.parameters():
        parameter.data = parameter.data.to(dtype).float()
    tiny.save(copy.deepcopy(built).to(dtype), tmp_path)
    assert_equal_logits(tmp_path, built)


@pytest.mark.parametrize("bias", [False, True])
def test_internlm2_is_llama_with_grouped_rows(tmp_path: Path, *, bias: bool) -> None:
    built = tiny.model(attention_bias=bias, num_attention_heads=6, hidden_size=72)
    tiny.save_as_internlm2(built, tmp_path)
    assert_equal_logits(tmp_path, built)


def test_a_mistral_without_the_key_has_the_window_that_transformers_gives_it(
    tmp_path: Path,
) -> None:
    tiny.save(tiny.model("mistral", sliding_window=7), tmp_path)
    rewrite_config(tmp_path, sliding_window=None)
    with LLM(tmp_path, device="cpu") as llm:
        assert llm.model_config.window == 4096


def test_a_window_means_nothing_to_a_llama(tmp_path: Path) -> None:
    built = tiny.model("llama")
    tiny.save(built, tmp_path)
    rewrite_config(tmp_path, sliding_window=7)
    assert_equal_logits(tmp_path, built)


def test_auto_keeps_float32_weights_exact_on_the_cpu(tmp_path: Path) -> None:
    built = tiny.model()
    ids = tiny.token_ids(LENGTH)
    with LLM(tiny.save(built, tmp_path), device="cpu") as llm:
        given = llm.logits(ids)
    torch.testing.assert_close(given, tiny.oracle_logits(built, ids), atol=TOLERANCE, rtol=0)


def test_bfloat16_is_near_the_exact_distribution(tmp_path: Path) -> None:
    built = tiny.model()
    ids = tiny.token_ids(LENGTH)
    exact = tiny.oracle_logits(built, ids).log_softmax(-1)
    with LLM(tiny.save(built, tmp_path), dtype="bfloat16", device="cpu") as llm:
        given = llm.logits(ids).log_softmax(-1)
    divergence = (exact.exp() * (exact - given)).sum(-1)
    assert divergence.mean() < 1e-2
    assert divergence.mean() > 1e-9, "bfloat16 was asked for, float32 was computed"
