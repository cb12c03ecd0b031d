"""Open a model on disk: a Hugging Face directory, or one GGUF file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from lite_llama.checkpoint.files import find_inside, quote, read_json_object, read_text
from lite_llama.checkpoint.gguf import read_gguf
from lite_llama.checkpoint.safetensors import read_safetensors
from lite_llama.errors import ModelFileError, ModelNotFound, UnsupportedModel
from lite_llama.formats.raw_tensor import RawTensor

PICKLE_SUFFIXES = (".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt")


@dataclass(frozen=True)
class Checkpoint:
    """A model on disk. Tensors are views on mapped files; nothing is decoded, nothing executed."""

    path: Path
    kind: Literal["hf", "gguf"]
    tensors: Mapping[str, RawTensor]
    metadata: Mapping[str, Any]
    """GGUF's key-values, or the parsed `config.json`."""
    chat_template: str | None
    """Template text; hostile like any other input."""
    generation_config: Mapping[str, Any]
    """The parsed `generation_config.json`; empty for GGUF and where there is none."""
    tokenizer_config: Mapping[str, Any]
    """The parsed `tokenizer_config.json`; empty for GGUF and where there is none."""
    tokenizer_path: Path | None
    """`tokenizer.json`; None for GGUF, whose metadata holds the vocabulary."""


def open_checkpoint(path: str | Path) -> Checkpoint:
    """Open a directory in Hugging Face layout or a GGUF file.

    Raises ModelNotFound where there is no model, UnsupportedModel for pickled weights and remote
    code, ModelFileError (their base) for damaged files.
    """
    path = Path(path)
    try:
        is_directory, exists = path.is_dir(), path.exists()
    except OSError as error:  # a name too long, a directory closed to us
        raise ModelNotFound(
            f"{quote(str(path))} cannot be opened ({error.strerror}); check the path"
        ) from None
    if is_directory:
        return _open_directory(path)
    if not exists:
        raise ModelNotFound(
            f"{str(path)!r} does not exist; nothing is downloaded, so give a directory or a "
            ".gguf file"
        )
    if path.suffix in PICKLE_SUFFIXES:
        raise UnsupportedModel(
            f"{path} holds pickled weights, which can run code; convert them to safetensors"
        )
    if path.suffix in (".safetensors", ".json"):
        raise ModelFileError(f"{path} is a part of a model; give its directory, {path.parent}")
    return _open_gguf(path)


def _open_gguf(path: Path) -> Checkpoint:
    metadata, tensors = read_gguf(path)
    template = metadata.get("tokenizer.chat_template")
    if template is not None and not isinstance(template, str):
        raise ModelFileError(
            f"{path}: key 'tokenizer.chat_template' is not a string; download the file again"
        )
    return Checkpoint(
        path=path,
        kind="gguf",
        tensors=tensors,
        metadata=metadata,
        chat_template=template,
        generation_config={},
        tokenizer_config={},
        tokenizer_path=None,
    )


def _open_directory(path: Path) -> Checkpoint:
    _check_has_weights(path)
    config = read_json_object(path, "config.json")
    if config is None:
        raise ModelNotFound(f"{path} holds no config.json; download the whole model")
    if "auto_map" in config:
        raise UnsupportedModel(
            f"{path / 'config.json'}: 'auto_map' asks to run the model's own code, which is never "
            "done; if the architecture is supported, remove this key"
        )
    tokenizer_config = read_json_object(path, "tokenizer_config.json") or {}
    return Checkpoint(
        path=path,
        kind="hf",
        tensors=read_safetensors(path),
        metadata=config,
        chat_template=_read_chat_template(path, tokenizer_config),
        generation_config=read_json_object(path, "generation_config.json") or {},
        tokenizer_config=tokenizer_config,
        tokenizer_path=find_inside(path, "tokenizer.json"),
    )


def _check_has_weights(path: Path) -> None:
    """Say what the directory holds instead, where it holds no safetensors."""
    try:
        names = sorted(entry.name for entry in path.iterdir())
    except OSError as error:
        raise ModelFileError(f"{path} cannot be read ({error.strerror}); check its mode") from None
    if any(name.endswith((".safetensors", ".safetensors.index.json")) for name in names):
        return
    for name in names:
        if name.endswith(".gguf"):
            raise ModelNotFound(f"{path} holds GGUF files; give one of them, as {path / name}")
        if name.endswith(PICKLE_SUFFIXES):
            raise UnsupportedModel(
                f"{path} holds only pickled weights ({name}), which can run code; convert them to "
                "safetensors"
            )
    raise ModelNotFound(f"{path} holds no *.safetensors file; check the path")


def _read_chat_template(path: Path, tokenizer_config: Mapping[str, Any]) -> str | None:
    """`chat_template.jinja`, else the tokenizer's one template or, of several, the default."""
    file = find_inside(path, "chat_template.jinja")
    if file is not None:
        return read_text(file)
    template = tokenizer_config.get("chat_template")
    if isinstance(template, list):  # [{"name": ..., "template": ...}]
        named = {item.get("name"): item for item in template if isinstance(item, dict)}
        template = named.get("default", {}).get("template")
    if template is not None and not isinstance(template, str):
        raise ModelFileError(
            f"{path / 'tokenizer_config.json'}: 'chat_template' is not a string; download it again"
        )
    return template
