"""What a recorded decode step is given, and what it leaves to the step behind it."""

from dataclasses import dataclass, replace

import pytest
import torch

from lite_llama.engine import cuda_graphs
from lite_llama.engine.config import EngineConfig, resolve
from lite_llama.engine.cuda_graphs import DecodeGraphs
from lite_llama.engine.graph_draw import GREEDY
from lite_llama.engine.runner import Runner
from lite_llama.models.loader import random_decoder
from tests.engine.rank_without_gpu import HostSharedGraphs
from tests.models.test_decode_chain import BASE

BLOCK = 8


@dataclass
class Owner:
    """A sequence, as far as a launch looks."""

    blocks: list[int]


class Steps:
    """Greedy launches without graphs, against decode steps whose every input is sent."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        torch.manual_seed(3)
        config = replace(BASE, num_layers=1, max_positions=64)
        asked = EngineConfig(device="cpu", max_model_len=64, max_num_seqs=8, block_size=BLOCK)
        plan = resolve(asked, config)
        decoder = random_decoder(config, plan.precision, device=plan.device, num_positions=64)
        self._pairs = [HostSharedGraphs(Runner(decoder, plan, 64)) for _ in range(2)]
        self.num_sent = 0
        as_tensor = cuda_graphs.as_tensor

        def counting(*arguments: object) -> torch.Tensor:
            self.num_sent += 1
            return as_tensor(*arguments)  # type: ignore[arg-type]

        monkeypatch.setattr(cuda_graphs, "as_tensor", counting)

    @torch.inference_mode()
    def launch(
        self, owners: list[Owner], positions: list[int], tokens: list[int] | None = None
    ) -> list[int]:
        """The tokens after `tokens`, or after those that the launch before has drawn."""
        graphs, other = self._pairs
        other._next = other._drawn = None
        before = self.num_sent
        given = tokens
        if given is None:
            assert graphs._drawn is not None
            given = graphs._drawn.tolist()
        want = DecodeGraphs.launch(other, owners, positions, given, GREEDY).tolist()
        self.num_sent = before
        on_device = graphs._drawn if tokens is None else tokens
        assert on_device is not None
        got = DecodeGraphs.launch(graphs, owners, positions, on_device, GREEDY)
        assert got.tolist() == want == graphs.told[: len(owners)].tolist()
        return want

    def forget_recordings(self) -> None:
        self._pairs[0]._recorded.clear()

    @torch.inference_mode()
    def launch_for_logits(self, owners: list[Owner], positions: list[int]) -> None:
        graphs = self._pairs[0]
        given = graphs._drawn
        assert given is not None
        DecodeGraphs.launch(graphs, owners, positions, given)


@pytest.fixture
def steps(monkeypatch: pytest.MonkeyPatch) -> Steps:
    return Steps(monkeypatch)


def test_nothing_is_sent_while_sequences_stay_in_their_blocks(steps: Steps) -> None:
    owners = [Owner([5]), Owner([9]), Owner([7])]  # three rows of four
    tokens = steps.launch(owners, [0, 0, 0], [11, 12, 13])
    assert steps.num_sent == 1
    seen = {tuple(tokens)}
    for step in range(1, BLOCK):
        seen.add(tuple(steps.launch(owners, [step, step, step])))
    assert steps.num_sent == 1
    assert len(seen) > 1  # or the tokens would tell nothing
    for owner, block in zip(owners, (20, 21, 8), strict=True):
        owner.blocks.append(block)
    steps.launch(owners, [8, 8, 8])
    assert steps.num_sent == 2


def test_whoever_joins_or_leaves_is_sent(steps: Steps) -> None:
    owners = [Owner([number]) for number in (4, 9, 7, 3, 8)]
    tokens = steps.launch(owners, [0] * 5, [1, 2, 3, 4, 5])
    steps.launch(owners[:3], [1, 1, 1], tokens[:3])  # a size that is recorded now
    assert steps.num_sent == 2
    tokens = steps.launch(owners[:3], [2, 2, 2])
    assert steps.num_sent == 2
    steps.launch([*owners[:3], Owner([1])], [3, 3, 3, 0], [*tokens, 6])
    assert steps.num_sent == 3


def test_a_step_for_logits_leaves_no_inputs(steps: Steps) -> None:
    owners = [Owner([4]), Owner([9])]
    steps.launch(owners, [0, 0], [1, 2])
    steps.launch_for_logits(owners, [1, 1])
    sent = steps.num_sent
    steps.launch(owners, [1, 1], [3, 4])
    assert steps.num_sent == sent + 1


def test_tokens_on_the_device_outlive_a_recording(steps: Steps) -> None:
    owners = [Owner([4]), Owner([9])]
    steps.launch(owners, [0, 0], [1, 2])
    steps.forget_recordings()
    steps.launch(owners, [1, 1])
