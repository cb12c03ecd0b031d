"""The public names, and what importing them costs."""

import inspect
import subprocess
import sys

import lite_llama
from lite_llama import LLM, ops

PACKAGE_NAMES = [
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
OPERATORS = [
    "SamplingRows",
    "add_rms_norm",
    "apply_masks",
    "apply_penalties",
    "argmax",
    "attention_decode",
    "attention_prefill",
    "embedding",
    "kv_write",
    "linear",
    "rms_norm",
    "rope",
    "sample",
    "swiglu",
]
# Method of LLM -> names of its parameters, * before those that are keywords only.
METHODS = {
    "__init__": "model * progress **settings",
    "chat": "messages sampling_params * tools chat_template_kwargs",
    "close": "",
    "default_sampling_params": "",
    "generate": "prompts sampling_params",
    "logits": "token_ids",
    "render_chat": "messages * tools **kwargs",
    "stream": "prompt sampling_params",
}


def signature(method: object) -> str:
    assert callable(method)
    shown: list[str] = []
    for parameter in list(inspect.signature(method).parameters.values())[1:]:
        if parameter.kind == parameter.KEYWORD_ONLY and "*" not in shown:
            shown.append("*")
        shown.append(
            f"**{parameter.name}" if parameter.kind == parameter.VAR_KEYWORD else parameter.name
        )
    return " ".join(shown)


def modules_after(statement: str) -> set[str]:
    """Names of the modules loaded in a fresh interpreter after `statement`."""
    code = f"{statement}\nimport sys\nprint(*sys.modules)"
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    return set(result.stdout.split())


def test_the_package_names_what_it_always_named() -> None:
    assert sorted(lite_llama.__all__) == sorted(PACKAGE_NAMES)
    assert all(getattr(lite_llama, name).__name__ == name for name in PACKAGE_NAMES)


def test_the_operators_are_all_there() -> None:
    assert set(OPERATORS) <= set(ops.__all__)
    assert all(callable(getattr(ops, name)) for name in ops.__all__)


def test_the_methods_of_a_model_take_what_they_always_took() -> None:
    public = {name for name, _ in inspect.getmembers(LLM, inspect.isfunction) if name[0] != "_"}
    assert public == set(METHODS) - {"__init__"}
    assert {name: signature(getattr(LLM, name)) for name in METHODS} == METHODS


def test_an_unknown_name_is_an_attribute_error() -> None:
    assert not hasattr(lite_llama, "Llm")


def test_importing_the_package_does_not_import_torch() -> None:
    loaded = modules_after("import lite_llama, lite_llama.cli")
    assert "lite_llama.cli" in loaded
    assert not {"torch", "numpy", "tokenizers", "triton"} & loaded


def test_without_a_gpu_triton_is_not_imported() -> None:
    loaded = modules_after(
        "import torch\ntorch.cuda.is_available = lambda: False\nimport lite_llama.llm"
    )
    assert "lite_llama.ops.linear.op" in loaded
    assert not [name for name in loaded if name.partition(".")[0] == "triton"]
    assert not {"transformers", "gguf", "jinja2", "sentencepiece"} & loaded
