"""A tiny random llama, saved once."""

from pathlib import Path

import pytest

from tests.models import tiny


@pytest.fixture(scope="session")
def tiny_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    built = tiny.model(num_attention_heads=6, num_key_value_heads=2, hidden_size=48)
    return tiny.save(built, tmp_path_factory.mktemp("tiny"))
