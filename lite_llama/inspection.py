"""What `lite-llama inspect` and `lite-llama doctor` print."""

import importlib.metadata
import platform
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from lite_llama.checkpoint.default_model import find_default_model
from lite_llama.checkpoint.reader import open_checkpoint
from lite_llama.errors import ConfigError, ModelNotFound
from lite_llama.models.config import ModelConfig
from lite_llama.models.families import find_family
from lite_llama.models.loader import expected_shapes, find_sources, part_shapes, read_config
from lite_llama.models.presets import PRESETS

# Read bandwidth of a plain streaming kernel on one H200, measured.
_H200_BYTES_PER_S = 4583e9


@dataclass(frozen=True)
class _Row:
    """One source tensor and the parameter it is a part of."""

    source: str
    source_shape: tuple[int, ...]
    format: str
    name: str
    shape: tuple[int, ...]
    num_bytes: int


def describe(model: str | None, prompt_len: int) -> str:
    """Configuration, parameter map, sizes and the tensor shapes of a step, as text.

    `model` is a directory, a `.gguf` file, the name of a preset, or None for the default model.
    """
    if prompt_len < 1:
        raise ConfigError(f"prompt_len is {prompt_len}, limit 1; raise it")
    if model is not None and model in PRESETS and not Path(model).exists():
        metadata = PRESETS[model]
        config = find_family("hf", metadata).read_hf_config(metadata)
        rows = _preset_rows(config, model)
    else:
        checkpoint = open_checkpoint(find_default_model() if model is None else model)
        config = read_config(checkpoint)
        rows = [
            _Row(raw.name, raw.shape, raw.format, source.name, source.shape, raw.data.nbytes)
            for source in find_sources(checkpoint, config)
            for raw, _ in source.parts
        ]
    sections = (
        _configuration(config),
        _parameter_map(rows, config),
        _sizes(rows, config),
        _step_shapes(config, prompt_len),
    )
    return "\n\n".join(sections)


def _preset_rows(config: ModelConfig, name: str) -> list[_Row]:
    family = find_family("hf", PRESETS[name])
    return [
        _Row(part, shape, "BF16", parameter, whole, 2 * _count(shape))
        for parameter, whole in expected_shapes(config).items()
        for part, shape in part_shapes(family, "hf", config, parameter)
    ]


def _configuration(config: ModelConfig) -> str:
    rope = config.rope
    scaling = "" if rope.kind == "none" else f", {rope.kind} scaling x{rope.factor:g}"
    features = [
        word
        for word, has in (
            ("q/k/v biases", config.qkv_bias),
            ("o bias", config.o_bias),
            ("q/k norm", config.qk_norm),
            ("tied head", config.tied_head),
            (f"window {config.window}", config.window is not None),
        )
        if has
    ]
    return _table(
        (
            ("family", config.family),
            ("layers", str(config.num_layers)),
            ("hidden / intermediate", f"{config.hidden_size} / {config.intermediate_size}"),
            (
                "heads (query / key) x dim",
                f"{config.num_q_heads} / {config.num_kv_heads} x {config.head_dim}",
            ),
            ("vocabulary", str(config.vocab_size)),
            ("context", str(config.max_positions)),
            ("rope", f"theta {rope.theta:g}{scaling}"),
            ("features", ", ".join(features) or "none"),
        )
    )


def _parameter_map(rows: Sequence[_Row], config: ModelConfig) -> str:
    """Each source tensor beside our name for it; layer 0 stands for all layers."""
    lines = [("tensor in the file", "shape", "format", "parameter", "shape")]
    for row in rows:
        if row.name.startswith("layers.") and not row.name.startswith("layers.0."):
            continue
        lines.append(
            (row.source, _shape(row.source_shape), row.format, row.name, _shape(row.shape))
        )
    note = f"(layer 0 of {config.num_layers}; the others are alike)"
    return f"{_table(lines)}\n{note}"


def _sizes(rows: Sequence[_Row], config: ModelConfig) -> str:
    num_parameters = sum(_count(row.source_shape) for row in rows)
    num_bytes = sum(row.num_bytes for row in rows)
    embedding = sum(row.num_bytes for row in rows if row.name == "embedding.weight")
    # A tied embedding is read whole as the head; else a step reads only one row of it.
    step_bytes = num_bytes if config.tied_head else num_bytes - embedding
    kv_bytes = config.kv_bytes_per_token(2)
    floor_ms = step_bytes / _H200_BYTES_PER_S * 1e3
    return _table(
        (
            ("parameters", f"{num_parameters:,}"),
            ("weight bytes", f"{num_bytes:,}"),
            ("KV bytes a token (16-bit)", f"{kv_bytes:,}"),
            ("bytes read by a decode step", f"{step_bytes:,} + {kv_bytes:,} a token of context"),
            ("floor of a decode step, H200", f"{floor_ms:.3f} ms at 4583 GB/s (bytes as stored)"),
        )
    )


def _step_shapes(config: ModelConfig, prompt_len: int) -> str:
    """Every activation of a prefill of one prompt and of a decode step of one sequence."""
    heads, kv_heads, dim = config.num_q_heads, config.num_kv_heads, config.head_dim
    stages: list[tuple[str, tuple[str | int, ...]]] = [
        ("token_ids", ("n",)),
        ("embedding", ("n", config.hidden_size)),
        ("qkv", ("n", config.q_size + 2 * config.kv_size)),
        ("q", ("n", heads, dim)),
        ("k, v (written to the cache)", ("n", kv_heads, dim)),
        ("attention", ("n", heads, dim)),
        ("o", ("n", config.hidden_size)),
        ("gate_up", ("n", 2 * config.intermediate_size)),
        ("swiglu", ("n", config.intermediate_size)),
        ("down", ("n", config.hidden_size)),
        ("logits (last token)", (1, config.vocab_size)),
    ]
    lines = [("tensor of a step", f"prefill of {prompt_len}", "decode of 1")]
    for name, shape in stages:
        prefill, decode = (
            _shape([count if size == "n" else size for size in shape]) for count in (prompt_len, 1)
        )
        lines.append((name, prefill, decode))
    return _table(lines)


def diagnose() -> str:
    """Device, versions, free memory, kernel cache and model locations, as text."""
    import torch

    from lite_llama.engine.config import free_memory, resolve_device

    device = resolve_device("auto")
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else platform.processor()
    try:
        model = str(find_default_model())
    except ModelNotFound as error:
        model = str(error)
    return _table(
        (
            ("lite-llama", _version("lite-llama")),
            ("python", f"{platform.python_version()} ({sys.executable})"),
            ("torch", f"{torch.__version__}, {torch.get_num_threads()} CPU threads"),
            ("triton", _version("triton")),
            ("device", f"{device} {name}".strip()),
            ("free memory", f"{free_memory(device) / 2**30:.1f} GiB"),
            ("kernel cache", _kernel_cache()),
            ("tuned launches", _tuned_launches()),
            ("default model", model),
        )
    )


def _kernel_cache() -> str:
    try:
        from triton import knobs  # type: ignore[import-untyped,unused-ignore]
    except ImportError:
        return "none: triton is not installed, so there is no GPU support"
    path = Path(knobs.cache.dir)
    return f"{path} ({'exists' if path.is_dir() else 'empty'})"


def _tuned_launches() -> str:
    """The tables of the present GPU: whose, how many entries, how many of other kernels."""
    import torch

    from lite_llama.kernel_lib import tuned
    from lite_llama.kernel_lib.gpu import gpu_spec

    if not torch.cuda.is_available():
        return "none: no GPU"
    gpu = gpu_spec(torch.device("cuda"))
    found = []
    for whose, folder in (("own", tuned.user_folder()), ("shipped", tuned.SHIPPED)):
        path = folder / f"{gpu.slug}.json"
        try:
            entries = tuned.read(path)
        except ConfigError as error:
            return str(error)
        stale = sum(entry.is_stale for entry in entries)
        found.append(
            f"{whose}: {len(entries)} entries, {stale} stale ({path})"
            if entries
            else f"none {whose} for {gpu.name}"
        )
    return "; ".join(found)


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _count(shape: Iterable[int]) -> int:
    total = 1
    for size in shape:
        total *= size
    return total


def _shape(shape: Iterable[str | int]) -> str:
    return f"[{', '.join(map(str, shape))}]"


def _table(lines: Iterable[Sequence[str]]) -> str:
    listed = list(lines)
    widths = [max(len(line[column]) for line in listed) for column in range(len(listed[0]))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip()
        for line in listed
    )
