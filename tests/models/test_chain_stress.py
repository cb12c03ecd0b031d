"""See chain_stress.py; here it runs whole, on a GPU."""

from pathlib import Path

import pytest
import torch

import lite_llama
from tests.models import chain_stress


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: kernels do not overlap")
@pytest.mark.timeout(600)
def test_ten_thousand_replays_under_random_delays_change_no_bit_and_missing_waits_show() -> None:
    for model, shares in chain_stress.differences(10000).items():
        assert shares["delayed"] == 0.0, model
        assert shares["unwaited"] > 0.0, f"{model}: the check would not notice a missing wait"


def test_no_wait_of_a_kernel_escapes_the_delays() -> None:
    package = Path(lite_llama.__file__).parent
    waiting = {path for path in package.rglob("*.py") if "gdc_" in path.read_text()}
    found = {
        Path(str(module.__file__))
        for module in chain_stress.kernel_modules()
        if hasattr(module, "gdc_wait") or hasattr(module, "gdc_launch_dependents")
    }
    assert waiting == found
    assert len(found) >= 3
    # Imported by name: a call by way of the library's module would not be replaced.
    assert not any("cuda.gdc_" in path.read_text() for path in waiting)


def test_sequences_begin_one_after_the_other_in_slots_of_their_own() -> None:
    table = torch.arange(64).view(2, 32)
    positions, slots, lengths = chain_stress._places(2, table, 16)[20]
    assert positions.tolist() == [20, 4]
    assert slots.tolist() == [20, 32 * 16 + 4]
    assert lengths.tolist() == [21, 5]
    assert chain_stress._places(2, table, 16)[0].tolist() == [[0, 0], [0, -1], [1, 0]]
