"""LLM inference in readable Python, with GPU kernels in Triton."""

from typing import TYPE_CHECKING, Any

from lite_llama.errors import (
    ConfigError,
    ContextTooLong,
    EngineError,
    LiteLlamaError,
    ModelFileError,
    ModelNotFound,
    OperatorError,
    RequestError,
    UnsupportedModel,
)

if TYPE_CHECKING:
    from lite_llama.completion import CompletionOutput, RequestMetrics, TextChunk
    from lite_llama.engine.config import EngineConfig
    from lite_llama.engine.sampling_params import SamplingParams
    from lite_llama.llm import LLM, RequestOutput

__version__ = "0.1.0"

__all__ = [
    "LLM",
    "CompletionOutput",
    "ConfigError",
    "ContextTooLong",
    "EngineConfig",
    "EngineError",
    "LiteLlamaError",
    "ModelFileError",
    "ModelNotFound",
    "OperatorError",
    "RequestError",
    "RequestMetrics",
    "RequestOutput",
    "SamplingParams",
    "TextChunk",
    "UnsupportedModel",
]

# torch takes two seconds to import, which `lite-llama --help` need not wait for.
_LAZY = {
    "LLM": "lite_llama.llm",
    "CompletionOutput": "lite_llama.completion",
    "RequestMetrics": "lite_llama.completion",
    "RequestOutput": "lite_llama.llm",
    "TextChunk": "lite_llama.completion",
    "EngineConfig": "lite_llama.engine.config",
    "SamplingParams": "lite_llama.engine.sampling_params",
}


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        from importlib import import_module

        return getattr(import_module(_LAZY[name]), name)
    raise AttributeError(f"module 'lite_llama' has no attribute {name!r}")
