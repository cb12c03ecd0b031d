"""What `lite-llama tune` found and the package ships compiles, without spilled registers."""

import json
import subprocess
import sys

from lite_llama.kernel_lib import tuned
from tests.compile.record import without_interpreter


def test_no_shipped_launch_spills() -> None:
    command = [sys.executable, "-m", "tests.compile.tuned_launches"]
    done = subprocess.run(command, env=without_interpreter(), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    found = json.loads(done.stdout)
    entries = sum(len(tuned.read(path)) for path in tuned.SHIPPED.glob("*.json"))
    assert len(found) == 5 * entries
    spilling = {name: usage for name, usage in found.items() if usage["spill_bytes"]}
    assert not spilling
    assert all(usage["registers"] > 16 for usage in found.values())
