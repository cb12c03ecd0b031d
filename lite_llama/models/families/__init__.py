"""The model families that exist, found by the architecture a checkpoint names."""

from collections.abc import Mapping
from typing import Any, Literal

from lite_llama.errors import ModelFileError, UnsupportedModel
from lite_llama.models.families import internlm2, llama, qwen2, qwen3
from lite_llama.models.families.family import Family

FAMILIES = (llama.FAMILY, qwen2.FAMILY, qwen3.FAMILY, internlm2.FAMILY)


def find_family(kind: Literal["hf", "gguf"], metadata: Mapping[str, Any]) -> Family:
    """The family of a checkpoint's metadata (config.json, or GGUF's key-values)."""
    if kind == "gguf":
        named = metadata.get("general.architecture")
        names = [named]
    else:
        named = metadata.get("architectures")
        names = named if isinstance(named, list) else [named]
    if not all(isinstance(name, str) for name in names) or not names:
        raise ModelFileError(f"architecture is {named!r}, expected a name; is this a model's file?")
    known: list[str] = []
    for family in FAMILIES:
        implemented = family.gguf_architectures if kind == "gguf" else family.hf_architectures
        if names[0] in implemented:
            return family
        known += implemented
    raise UnsupportedModel(f"architecture {names[0]!r} is not implemented; {', '.join(known)} are")
