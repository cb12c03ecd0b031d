"""Stamps with a clock of the test's own, in Triton's interpreter."""

from types import ModuleType, SimpleNamespace
from typing import cast

import pytest
import torch
import triton
import triton.language as tl

from lite_llama.kernel_lib import stamps

TICK = 1 << stamps.TICK_BITS.value


@triton.jit
def _waiting_kernel():
    stamps.stamped_wait()


@pytest.mark.skipif(torch.cuda.is_available(), reason="the clock is the interpreter's")
def test_programs_leave_their_launch_their_number_and_both_times(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = 10**15
    waited = 0

    def clock() -> tl.tensor:
        nonlocal now
        now += 7
        return tl.full((), now, tl.int64)

    def wait() -> None:
        nonlocal now
        now += waited

    monkeypatch.setattr(stamps, "NUM_TICKS", tl.constexpr(32))
    monkeypatch.setattr(stamps, "globaltimer", clock)
    monkeypatch.setattr(stamps, "gdc_wait", wait)
    buffer = stamps.take_stamps([], torch.device("cpu"))
    assert len(stamps.read_stamps(buffer)) == 0

    _waiting_kernel[(2, 1, 1)]()
    now += TICK
    waited = 5
    begin = now
    _waiting_kernel[(2, 2, 1)]()
    found = stamps.read_stamps(buffer)
    assert found[:, 0].tolist() == [2, 2, 4, 4, 4, 4]
    assert sorted(found[2:, 1].tolist()) == [0, 1, 2, 3]
    assert (found[2:, 2] - begin).tolist() == [7, 26, 45, 64]
    assert (found[2:, 3] - found[2:, 2]).tolist() == [12] * 4

    # What is older than the buffer's time is not read; of many programs some are kept.
    now += 32 * TICK
    waited = 0
    _waiting_kernel[(300, 1, 1)]()
    found = stamps.read_stamps(buffer)
    assert set(found[:, 0].tolist()) == {300}
    assert found[:, 1].tolist() == list(range(0, 300, 3))


def test_stamping_functions_take_the_place_of_names_that_are_there() -> None:
    waiting = SimpleNamespace(gdc_wait=1, other=2)
    buffer = stamps.take_stamps([cast(ModuleType, waiting)], torch.device("cpu"))
    assert vars(waiting) == {"gdc_wait": stamps.stamped_wait, "other": 2}
    assert buffer.dtype == torch.int64
    assert buffer.data_ptr() == stamps._ADDRESS.value
