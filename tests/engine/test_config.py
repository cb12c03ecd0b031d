"""What is asked of an engine is refused, or settled."""

from dataclasses import replace
from typing import Any

import pytest
import torch

from lite_llama import ConfigError, EngineConfig
from lite_llama.engine.config import choose_num_blocks, free_memory, resolve
from lite_llama.models.config import ModelConfig, RopeConfig
from lite_llama.models.loader import choose_half, resolve_precision

MODEL = ModelConfig(
    family="llama",
    vocab_size=100,
    hidden_size=64,
    intermediate_size=96,
    num_layers=2,
    num_q_heads=4,
    num_kv_heads=2,
    head_dim=16,
    norm_eps=1e-5,
    max_positions=2048,
    rope=RopeConfig(theta=1e4, rotary_dim=16),
)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dtype", "int8"),
        ("dtype", None),
        ("device", "tpu"),
        ("device", "cuda:x"),
        ("device", ""),
        ("device", "meta"),
        ("device", 0),
        ("max_model_len", 0),
        ("max_model_len", "8"),
        ("max_model_len", True),
        ("max_model_len", 2049),
        ("max_num_seqs", -1),
        ("max_num_seqs", 1.5),
        ("max_num_batched_tokens", 0),
        ("num_blocks", 0),
        ("block_size", 12),
        ("block_size", 16.0),
        ("prefix_caching", 1),
        ("tensor_parallel_size", 0),
        ("tensor_parallel_size", None),
        ("tensor_parallel_size", 2.0),
        ("tensor_parallel_size", True),
        ("tensor_parallel_size", 3),
        ("gpu_memory_utilization", 0),
        ("gpu_memory_utilization", 1.1),
        ("gpu_memory_utilization", float("nan")),
        ("gpu_memory_utilization", "0.9"),
    ],
)
def test_an_impossible_setting_is_named_in_one_line(field: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=field) as caught:
        resolve(EngineConfig(**{field: value}), MODEL)
    assert "\n" not in str(caught.value)


def test_a_missing_gpu_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ConfigError, match="torch sees no GPU; use --device cpu"):
        resolve(EngineConfig(device="cuda"), MODEL)
    assert resolve(EngineConfig(), MODEL).device == torch.device("cpu")


def test_ranks_take_the_gpus_in_order_and_there_must_be_enough(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    plan = resolve(EngineConfig(device="cuda", tensor_parallel_size=2), MODEL)
    assert (plan.device, plan.tensor_parallel_size) == (torch.device("cuda", 0), 2)
    assert resolve(EngineConfig(device="cuda"), MODEL).device == torch.device("cuda")
    with pytest.raises(ConfigError, match="device is 'cuda:1', but tensor_parallel_size 2 takes"):
        resolve(EngineConfig(device="cuda:1", tensor_parallel_size=2), MODEL)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="tensor_parallel_size is 2, limit 1 GPUs of this machi"):
        resolve(EngineConfig(device="cuda", tensor_parallel_size=2), MODEL)


def test_defaults_suit_model_and_machine() -> None:
    plan = resolve(EngineConfig(device="cpu"), MODEL)
    assert (plan.max_model_len, plan.max_num_seqs, plan.max_num_batched_tokens) == (2048, 16, 512)
    assert plan.precision.activations == torch.float32
    assert plan.precision.weights is None
    exact = resolve(EngineConfig(device="cpu", dtype="bfloat16"), MODEL)
    assert exact.precision.activations == exact.precision.weights == torch.bfloat16


def test_a_small_step_lowers_the_default_number_of_sequences() -> None:
    plan = resolve(EngineConfig(device="cpu", max_num_batched_tokens=4), MODEL)
    assert plan.max_num_seqs == 4
    with pytest.raises(ConfigError, match="max_num_batched_tokens is 4, limit max_num_seqs = 5"):
        resolve(EngineConfig(device="cpu", max_num_batched_tokens=4, max_num_seqs=5), MODEL)


def test_the_cache_holds_two_contexts_or_a_quarter_of_the_memory() -> None:
    config = EngineConfig(device="cpu", max_model_len=100)
    plan = resolve(config, MODEL)
    # 2 tensors · 2 layers · 2 heads · 16 values · 4 bytes a token, 16 tokens a block.
    block_bytes = 512 * 16
    assert choose_num_blocks(config, plan, MODEL, free_bytes=10**9) == 14
    assert choose_num_blocks(config, plan, MODEL, free_bytes=20 * block_bytes) == 5
    assert choose_num_blocks(config, plan, MODEL, free_bytes=0) == 1
    asked = replace(config, num_blocks=3)
    assert choose_num_blocks(asked, plan, MODEL, free_bytes=10**9) == 3


def test_a_gpu_too_small_for_one_context_is_refused() -> None:
    config = EngineConfig(device="cpu", max_model_len=100)
    plan = replace(resolve(config, MODEL), device=torch.device("cuda"))
    block_bytes = 512 * 16
    assert choose_num_blocks(config, plan, MODEL, free_bytes=10 * block_bytes) == 9
    with pytest.raises(ConfigError, match="lower max_model_len"):
        choose_num_blocks(config, plan, MODEL, free_bytes=7 * block_bytes)


def test_free_memory_is_that_of_the_machine() -> None:
    assert 2**20 < free_memory(torch.device("cpu")) < 2**50


@pytest.mark.parametrize(
    ("formats", "changes", "half"),
    [
        ({"BF16"}, {}, torch.bfloat16),
        ({"F32"}, {}, torch.bfloat16),
        ({"F16", "F32"}, {}, torch.float16),
        ({"Q4_1", "Q8_0", "F32"}, {}, torch.float16),
        ({"Q4_1", "F32"}, {"qkv_bias": True}, torch.bfloat16),
        ({"Q8_0"}, {"qk_norm": True}, torch.bfloat16),
    ],
)
def test_a_gpu_computes_in_the_half_precision_that_loses_least(
    formats: set[str], changes: dict[str, bool], half: torch.dtype
) -> None:
    config = replace(MODEL, **changes)
    assert choose_half(config, formats) == half
    precision = resolve_precision("auto", torch.device("cuda"), choose_half(config, formats))
    assert (precision.activations, precision.weights) == (half, half)
