"""An engine that computes nothing and takes the time that a GPU would: for work on the HTTP side.

Scheduler, look-ahead and everything around them are real. A step takes the 1 ms that reading the
weights of a 1B model takes an H100, 9 us for each sequence and 4.5 us for each token of a prompt.
"""

import time
from dataclasses import replace

import torch
from torch import Tensor

from lite_llama.engine import batch
from lite_llama.engine import engine as engine_module
from lite_llama.engine.config import EngineConfig, resolve
from lite_llama.engine.engine import Engine
from lite_llama.engine.graph_draw import GraphDraw
from lite_llama.engine.logits import Logits
from lite_llama.engine.scheduler import Scheduled
from lite_llama.models.loader import random_decoder
from lite_llama.server import engine_process
from tests.models.test_decode_chain import BASE
from tests.server.preset_engine import PresetLLM

STEP_S, SEQUENCE_S, PROMPT_TOKEN_S = 1e-3, 9e-6, 4.5e-6
TOKEN = 1000
NUM_BLOCKS = 4096


class PacedGpu:
    """A stand-in for the runner; `free_at` is when all that was launched is done."""

    free_at = 0.0

    def __init__(self, max_num_seqs: int) -> None:
        self._tokens = torch.full((max_num_seqs,), TOKEN)

    def replays(self, planned: list[Scheduled]) -> bool:
        return batch.only_decodes(planned)

    def draw(
        self, planned: list[Scheduled], _: batch.Unread | None, __: GraphDraw
    ) -> tuple[Tensor, Tensor]:
        self._launch(planned)
        tokens = self._tokens[: len(planned)]
        return tokens, tokens

    def run(self, planned: list[Scheduled], _: batch.Unread | None = None) -> Logits:
        """Logits of a vocabulary of one."""
        self._launch(planned)
        values = torch.zeros(sum(share.draws_token for share in planned), 1)
        return Logits(values, in_place=False)

    @classmethod
    def _launch(cls, planned: list[Scheduled]) -> None:
        sizes = [share.num_new_tokens for share in planned]
        num_decodes = sizes.count(1)
        taken = STEP_S + SEQUENCE_S * num_decodes + PROMPT_TOKEN_S * (sum(sizes) - num_decodes)
        cls.free_at = max(cls.free_at, time.perf_counter()) + taken


class PacedTokens:
    """Tokens that come when the GPU is done with them."""

    def __init__(self, tokens: Tensor, told: Tensor | None = None) -> None:
        del told
        self.source = tokens
        self._come_at = PacedGpu.free_at

    def has_come(self) -> bool:
        return time.perf_counter() >= self._come_at

    def wait(self) -> list[int]:
        time.sleep(max(0.0, self._come_at - time.perf_counter()))
        return [TOKEN] * len(self.source)


class PacedLLM(PresetLLM):
    """With weights so small that they cost nothing, and that nobody asks."""

    @staticmethod
    def make_engine(settings: EngineConfig) -> Engine:
        config = replace(BASE, vocab_size=128256, hidden_size=64, num_layers=1, max_positions=2048)
        plan = resolve(replace(settings, device="cpu", max_num_batched_tokens=2048), config)
        decoder = random_decoder(config, plan.precision, device=plan.device, num_positions=2048)
        engine = Engine(decoder, plan, NUM_BLOCKS, frozenset())
        engine.runner = PacedGpu(plan.max_num_seqs)  # type: ignore[assignment]
        engine.looks_ahead = True
        return engine


def main(descriptor: int) -> int:
    """The body of a server's engine process."""
    torch.set_num_threads(1)
    engine_module._ReadBack = PacedTokens  # type: ignore[assignment, misc]
    return engine_process.main(descriptor, PacedLLM)
