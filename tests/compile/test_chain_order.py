"""Only weights are loaded before a kernel of the decode chain waits for its predecessor."""

import json
import subprocess
import sys

from tests.compile.chain_order import OPERATORS
from tests.compile.record import without_interpreter


def test_weights_are_loaded_before_the_wait_and_activations_after() -> None:
    command = [sys.executable, "-m", "tests.compile.chain_order"]
    done = subprocess.run(command, env=without_interpreter(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout)
    assert {name.partition(":")[0] for name in found} == set(OPERATORS)
    for name, (before, after) in found.items():
        weights_before, others_before = before
        _, others_after = after
        if "eight tokens" not in name:  # whose best launches begin after the wait
            assert weights_before >= 1, f"{name} loads no weight before it waits"
        assert others_before == 0, f"{name} loads {others_before} activations before it waits"
        assert others_after >= 1, name
