"""Stamps leave the chain's kernels as they are: weights before the wait, all the rest after it."""

from tests.compile.record import run_module
from tests.compile.test_chain_order import ACTIVATIONS


def test_stamps_go_around_the_wait_and_no_load_moves_over_it() -> None:
    found = run_module("tests.compile.stamped_chain")
    assert len(found) == 6
    for name, kernel in found.items():
        assert kernel["clock"] == [1, 1], name
        assert kernel["stored"] == 0, f"{name} stores before it waits"
        assert not ACTIVATIONS & set(kernel["order"]["before"]), name
        assert ACTIVATIONS & set(kernel["order"]["after"]), name
        in_machine_code, in_ptx = kernel["order"]["loads"]
        assert in_machine_code <= in_ptx, f"{name}: a load moved over the wait"
