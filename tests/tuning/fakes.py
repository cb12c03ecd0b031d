"""A model of a GPU for the search: a chain's time is what a function says."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from lite_llama.kernel_lib.gpu import H200
from lite_llama.models.chain_launches import ChainLaunches, choose_launches, settle_attention
from lite_llama.models.families import find_family
from lite_llama.models.presets import find_preset
from lite_llama.tuning.search import Rejected, Timing
from lite_llama.tuning.space import Space

METADATA = find_preset("llama-3.2-1b")
CONFIG = find_family("hf", METADATA).read_hf_config(METADATA)


def start(num_tokens: int = 1) -> ChainLaunches:
    """The chain's default launches on an H200."""
    chosen = choose_launches(CONFIG, num_tokens, torch.bfloat16)
    return settle_attention(chosen, CONFIG, (num_tokens, torch.bfloat16, 131072), H200)


def space(num_tokens: int = 1) -> Space:
    return Space(CONFIG, num_tokens, torch.bfloat16, H200)


@dataclass
class FakeMeter:
    """A `Measure` whose spread is ± `noise` of the ratio."""

    cost: Callable[[ChainLaunches], float]
    noise: float = 0.001
    wrong: Callable[[ChainLaunches], bool] = lambda _: False
    calls: list[ChainLaunches] = field(default_factory=list)
    longer: int = 0

    def __call__(
        self, candidate: ChainLaunches, incumbent: ChainLaunches, *, longer: bool
    ) -> Timing:
        self.calls.append(candidate)
        self.longer += longer
        if self.wrong(candidate):
            raise Rejected("wrong result: NMSE 1")
        ms = self.cost(candidate)
        ratio = ms / self.cost(incumbent)
        return Timing(ms, ratio, ratio - self.noise, ratio + self.noise)


def samples(values: Sequence[float]) -> tuple[Callable[[], list[float]], list[float]]:
    """A sampler of these values in turn, at one context, and the list of those drawn."""
    drawn: list[float] = []

    def sample() -> list[float]:
        drawn.append(values[len(drawn) % len(values)])
        return drawn[-1:]

    return sample, drawn
