"""Rotary frequencies against transformers' ROPE_INIT_FUNCTIONS."""

from typing import Any

import pytest
import torch
from transformers import LlamaConfig
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from lite_llama.models.families.fields import read_hf_rope
from lite_llama.models.rotary import cos_sin_table, scaled_frequencies

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5e5,
    "factor": 32.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
YARN = {
    "rope_type": "yarn",
    "rope_theta": 1e6,
    "factor": 4.0,
    "original_max_position_embeddings": 32768,
}
SCALINGS: dict[str, dict[str, Any]] = {
    "linear": {"rope_type": "linear", "rope_theta": 1e4, "factor": 2.5},
    "llama3": LLAMA3,
    "llama3, other factors": {**LLAMA3, "low_freq_factor": 2.0, "high_freq_factor": 8.0},
    "yarn": YARN,
    "yarn, attention_factor": {**YARN, "attention_factor": 1.5},
    "yarn, not truncated": {**YARN, "truncate": False},
    "yarn, betas": {**YARN, "beta_fast": 64.0, "beta_slow": 4.0},
    "yarn, factor below one": {**YARN, "factor": 0.5},
    "yarn, short context": {**YARN, "original_max_position_embeddings": 64},
}
MAX_POSITIONS = 131072


@pytest.mark.parametrize("head_dim", [64, 80, 128])
@pytest.mark.parametrize("name", SCALINGS)
def test_frequencies_are_those_of_transformers(name: str, head_dim: int) -> None:
    scaling = SCALINGS[name]
    config = LlamaConfig(
        head_dim=head_dim, max_position_embeddings=MAX_POSITIONS, rope_parameters=dict(scaling)
    )
    expected, factor = ROPE_INIT_FUNCTIONS[scaling["rope_type"]](config, torch.device("cpu"))
    rope = read_hf_rope({"rope_parameters": scaling}, head_dim, MAX_POSITIONS)
    given, magnitude = scaled_frequencies(rope, MAX_POSITIONS)
    torch.testing.assert_close(given, expected, rtol=2e-6, atol=0)
    assert magnitude == pytest.approx(factor, rel=1e-12)


@pytest.mark.parametrize("length", [1, 4096, 4097, 8192, 32768])
def test_dynamic_frequencies_are_those_of_transformers_at_that_length(length: int) -> None:
    scaling = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}
    config = LlamaConfig(head_dim=64, max_position_embeddings=4096, rope_parameters=dict(scaling))
    expected, _ = ROPE_INIT_FUNCTIONS["dynamic"](config, torch.device("cpu"), seq_len=length)
    rope = read_hf_rope({"rope_parameters": scaling}, 64, 4096)
    given, magnitude = scaled_frequencies(rope, length)
    torch.testing.assert_close(given, expected, rtol=2e-6, atol=0)
    assert magnitude == 1.0


def test_dynamic_scaling_changes_nothing_within_the_original_context() -> None:
    plain = read_hf_rope({"rope_theta": 1e4}, 64, 4096)
    dynamic = read_hf_rope({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, 64, 4096)
    within, _ = scaled_frequencies(dynamic, 4096)
    beyond, _ = scaled_frequencies(dynamic, 4097)
    torch.testing.assert_close(within, scaled_frequencies(plain, 1)[0], rtol=1e-6, atol=0)
    assert bool((beyond[1:] < within[1:]).all())


def test_the_table_holds_cosines_then_sines_times_the_magnitude() -> None:
    rope = read_hf_rope({"rope_parameters": YARN}, 16, MAX_POSITIONS)
    frequencies, magnitude = scaled_frequencies(rope, 50)
    table = cos_sin_table(rope, 50)
    assert table.shape == (50, 16)
    angles = torch.arange(50).double()[:, None] * frequencies.double()
    expected = torch.cat((angles.cos(), angles.sin()), dim=1) * magnitude
    assert magnitude == pytest.approx(1.1386294, abs=1e-6)  # 0.1 ln 4 + 1
    torch.testing.assert_close(table.double(), expected, atol=1e-5, rtol=0)
