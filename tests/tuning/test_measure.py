"""How two chains are compared."""

import pytest

from lite_llama.errors import EngineError
from lite_llama.tuning.measure import attempt, compare
from lite_llama.tuning.search import Rejected
from tests.tuning.fakes import samples


def test_a_ratio_is_the_median_over_rounds_with_its_spread() -> None:
    own, _ = samples([1.00, 1.02, 0.98, 1.01, 0.99])
    other, _ = samples([1.0])
    timing = compare(own, other, 5, may_stop=True)
    assert (timing.ms, timing.ratio) == (1.0, 1.0)
    assert (timing.low, timing.high) == (0.99, 1.01)
    assert timing.verdict == "tie"


def test_drift_that_both_share_does_not_show() -> None:
    clock = iter([1.0 + i / 100 for i in range(40)])
    timing = compare(lambda: [0.9 * next(clock)], lambda: [next(clock)], 10, may_stop=True)
    assert timing.verdict == "faster"
    assert timing.ratio == pytest.approx(0.9, abs=0.002)


def test_the_first_context_counts_as_much_as_all_longer_ones() -> None:
    timing = compare(lambda: [0.9, 2.0, 8.4], lambda: [1.0, 2.0, 8.0], 5, may_stop=True)
    assert timing.ratio == pytest.approx((2 * 0.9 + 1.0 + 1.05) / 4)
    assert (timing.ms, timing.verdict) == (0.9, "faster")


def test_a_hopeless_candidate_is_given_up_after_one_round() -> None:
    slow, drawn = samples([1.06])
    other, others = samples([1.0])
    timing = compare(slow, other, 5, may_stop=True)
    assert timing.stopped
    assert (len(drawn), len(others)) == (1, 1)
    assert timing.verdict == "slower"
    patient = compare(slow, other, 5, may_stop=False)
    assert (patient.stopped, len(drawn)) == (False, 1 + 5)


def test_whatever_a_compiler_raises_is_a_rejection_of_one_line() -> None:
    def fail() -> None:
        raise OverflowError("out of resource: shared memory\nRequired: 300000")

    with pytest.raises(Rejected, match=r"^OverflowError: out of resource: shared memory$"):
        attempt(fail, wait=lambda: None)


def test_a_fault_of_the_gpu_ends_the_search_instead() -> None:
    def fault() -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    with pytest.raises(EngineError, match=r"illegal memory access.*run again to go on"):
        attempt(fault, wait=fault)
