"""Stamps leave the chain's kernels as they are: weights before the wait, all the rest after it."""

import json
import subprocess
import sys

from tests.compile.record import without_interpreter
from tests.compile.test_chain_order import ACTIVATIONS


def test_stamps_go_around_the_wait_and_no_load_moves_over_it() -> None:
    command = [sys.executable, "-m", "tests.compile.stamped_chain"]
    done = subprocess.run(command, env=without_interpreter(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout)
    assert found.pop("argmax: 8x128256 fp32")["clock"] == [1, 0]
    assert len(found) == 6
    for name, kernel in found.items():
        assert kernel["clock"] == [1, 1], name
        assert kernel["stored"] == 0, f"{name} stores before it waits"
        assert not ACTIVATIONS & set(kernel["order"]["before"]), name
        assert ACTIVATIONS & set(kernel["order"]["after"]), name
        in_machine_code, in_ptx = kernel["order"]["loads"]
        assert in_machine_code <= in_ptx, f"{name}: a load moved over the wait"
