"""The model of the rows that need a GPU, but for its weights: Llama 3's vocabulary and a template.

Without torch, as the HTTP process of a server is.
"""

from pathlib import Path

from lite_llama.checkpoint.reader import Checkpoint
from tests.text.vocabularies import metadata

PRESET = "llama-3.2-1b"
MODEL = "SmolLM2-135M-Instruct"  # as in servers.py, which imports torch
EOS = 128009
LAGS = "loop lags in ms: "  # how preset_server begins a line
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"


def preset_checkpoint() -> Checkpoint:
    """What `open_checkpoint` would find if the model were on disk; it has no tensors."""
    return Checkpoint(
        path=Path(PRESET),
        kind="gguf",
        tensors={},
        metadata=metadata("llama-bpe"),
        chat_template=TEMPLATE,
        generation_config={},
        tokenizer_config={},
        tokenizer_path=None,
    )
