"""What a kernel of the decode chain reads before it waits is written by no kernel of its step."""

from tests.compile.chain_order import CHAINED_ATTENTION, OPERATORS
from tests.compile.record import run_module

WEIGHTS = {"w_ptr", "norm_ptr", "q_norm_ptr", "k_norm_ptr", "bias_ptr", "cos_sin_ptr"}
# Inputs of the whole step; of the cache, keys and values of earlier steps.
INPUTS = {"positions_ptr", "slots_ptr", "seq_lens_ptr", "block_table_ptr"}
CACHE = {"k_ptr", "v_ptr"}
ACTIVATIONS = {"x_ptr", "residual_ptr", "qkv_ptr", "q_ptr"}


def test_weights_are_loaded_before_the_wait_and_activations_after() -> None:
    found = run_module("tests.compile.chain_order")
    attention = found.pop(CHAINED_ATTENTION)
    assert {name.partition(":")[0] for name in found} == set(OPERATORS)
    assert set(attention["before"]) == INPUTS - {"positions_ptr", "slots_ptr"} | CACHE
    assert {"q_ptr", *CACHE} <= set(attention["after"])  # the newest key and value among them
    for name, kernel in found.items():
        before, after = set(kernel["before"]), set(kernel["after"])
        assert before <= WEIGHTS | INPUTS, name
        assert before & {"w_ptr", "q_norm_ptr"}, f"{name} loads no weight before it waits"
        assert after & ACTIVATIONS, name
    for name, kernel in {**found, CHAINED_ATTENTION: attention}.items():
        in_machine_code, in_ptx = kernel["loads"]
        assert in_machine_code <= in_ptx, f"{name}: a load moved over the wait"
