from contextlib import nullcontext

import pytest
import torch

from lite_llama.errors import OperatorError
from lite_llama.kernel_lib.gemv_launch import GemvLaunch
from lite_llama.ops import norm_gate_up
from lite_llama.ops.norm_gate_up import kernel, reference
from tests.ops.compare import DTYPES, assert_close_to_reference, poison_new_outputs, random
from tests.ops.gemv_launches import Running, on, over_launches
from tests.ops.tolerances import FUSED


@pytest.mark.parametrize("dtype", DTYPES)
@over_launches
@pytest.mark.parametrize(("inter", "hidden"), [(32, 64), (33, 576), (8, 2880), (20, 1024)])
def test_gated_products_equal_the_reference(
    device: torch.device,
    dtype: torch.dtype,
    num_tokens: int,
    launch: GemvLaunch,
    inter: int,
    hidden: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    poison_new_outputs(monkeypatch)
    check(num_tokens, on(device, launch), inter, hidden, dtype, device)


def check(
    num_tokens: int, launch: GemvLaunch, inter: int, hidden: int, dtype: torch.dtype,
    device: torch.device, *, running: Running = nullcontext,
) -> None:  # fmt: skip
    """Compare a launch, made while something is `running`, with the reference."""
    x, norm = (
        random(num_tokens, hidden, dtype=dtype, device=device),
        random(hidden, dtype=dtype, device=device),
    )
    weight = random(2 * inter, hidden, dtype=dtype, device=device, scale=hidden**-0.5)
    want = reference.norm_gate_up(x.double(), norm.double(), weight.double(), 1e-5)
    plain = reference.norm_gate_up(x, norm, weight, 1e-5)
    with running():
        got = kernel.norm_gate_up(x, norm, weight, 1e-5, launch)
    assert_close_to_reference(got, want, FUSED, plain if dtype != torch.float32 else None)


def test_calls_against_the_contract_name_the_argument(device: torch.device) -> None:
    x, norm = torch.zeros(1, 8, device=device), torch.ones(8, device=device)
    with pytest.raises(OperatorError, match="weight has 3 rows"):
        norm_gate_up(x, norm, torch.zeros(3, 8, device=device), 1e-5)
    with pytest.raises(OperatorError, match=r"norm has shape \(4,\)"):
        norm_gate_up(x, norm[:4], torch.zeros(4, 8, device=device), 1e-5)
