import sys
from pathlib import Path

import pytest

from lite_llama.bench import startup
from lite_llama.bench.startup import measure


def test_first_output_and_end_are_timed_and_the_answer_is_checked() -> None:
    script = "import sys, time; print('a', flush=True); time.sleep(0.5); print('Paris')"
    line = measure((sys.executable, "-c", script), "Paris")
    assert line["whole_s"] >= line["median_us"] / 1e6 + 0.25
    assert line["peak_mib"] > 5
    with pytest.raises(RuntimeError, match="not 'Rome'"):
        measure((sys.executable, "-c", "print('Paris')"), "Rome")


def test_a_presets_first_token_comes_from_a_checkpoint_written_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shape = {
        "architectures": ["Qwen3ForCausalLM"], "hidden_size": 64, "intermediate_size": 96,
        "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16,
        "vocab_size": 300, "max_position_embeddings": 4096, "rope_theta": 1e4,
        "rms_norm_eps": 1e-6, "tie_word_embeddings": False,
    }  # fmt: skip
    monkeypatch.setattr(startup, "find_preset", lambda _: shape)
    monkeypatch.setattr(startup, "_ROUNDS", 1)
    startup.write_checkpoint("tiny", tmp_path)
    cold, warm = startup.measure_first_token("tiny", tmp_path)
    assert cold["case"] == "tiny, no kernel compiled before"
    assert warm["case"] == "tiny, kernels kept"
    assert 0 < warm["median_us"] / 1e6 < warm["whole_s"]
