"""The engine of the rows that need a GPU: random weights in a preset's shape."""

import itertools
from typing import Any

from lite_llama.bench.latency import build_engine
from lite_llama.engine.config import EngineConfig
from lite_llama.engine.engine import Engine
from lite_llama.llm import LLM
from lite_llama.model_text import ModelText, read_tokenizer
from lite_llama.server import engine_process
from tests.server.preset import EOS, PRESET, preset_checkpoint

SETTINGS: dict[str, Any] = {"device": "auto", "max_model_len": 2048, "max_num_seqs": 256}


class PresetLLM(LLM):
    """An LLM of random weights, with Llama 3's vocabulary."""

    def __init__(self, _: Any = None, **settings: Any) -> None:
        engine = self.make_engine(EngineConfig(**{**SETTINGS, **settings}))
        engine.eos_token_ids = frozenset({EOS})
        self.plan = engine.plan
        self.model_config = engine.model
        self._engine = engine
        checkpoint = preset_checkpoint()
        self._tokenizer = read_tokenizer(checkpoint)
        self.text = ModelText(checkpoint, self._tokenizer, engine.plan.max_model_len)
        self._live = {}
        self._ids = itertools.count()

    @staticmethod
    def make_engine(settings: EngineConfig) -> Engine:
        return build_engine(settings, None, PRESET)


def main(descriptor: int) -> int:
    """The body of a server's engine process."""
    return engine_process.main(descriptor, PresetLLM)
