"""What `lite-llama tune` found and the package ships compiles, without spilled registers."""

from lite_llama.kernel_lib import tuned
from tests.compile.record import run_module


def test_no_shipped_launch_spills() -> None:
    found = run_module("tests.compile.tuned_launches")
    entries = sum(len(tuned.read(path)) for path in tuned.SHIPPED.glob("*.json"))
    assert len(found) == 5 * entries
    spilling = {name: usage for name, usage in found.items() if usage["spill_bytes"]}
    assert not spilling
    assert all(usage["registers"] > 16 for usage in found.values())
