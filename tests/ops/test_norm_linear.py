from contextlib import nullcontext

import pytest
import torch

from lite_llama.errors import OperatorError
from lite_llama.kernel_lib.gemv_launch import GemvLaunch
from lite_llama.ops import norm_linear
from lite_llama.ops.norm_linear import kernel, reference
from tests.ops.compare import DTYPES, nmse, poison_new_outputs, random
from tests.ops.gemv_launches import Running, on, over_launches
from tests.ops.tolerances import FUSED


@pytest.mark.parametrize("dtype", DTYPES)
@over_launches
@pytest.mark.parametrize(("rows", "hidden"), [(64, 64), (37, 576), (16, 2880), (70, 1024)])
def test_logits_equal_the_reference(
    device: torch.device,
    dtype: torch.dtype,
    num_tokens: int,
    launch: GemvLaunch,
    rows: int,
    hidden: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    poison_new_outputs(monkeypatch)
    check(num_tokens, on(device, launch), rows, hidden, dtype, device, biased=True)


def check(
    num_tokens: int, launch: GemvLaunch, rows: int, hidden: int, dtype: torch.dtype,
    device: torch.device, *, biased: bool = False, running: Running = nullcontext,
) -> None:  # fmt: skip
    """Compare a launch, made while something is `running`, with the reference."""
    x, norm = (random(*s, dtype=dtype, device=device) for s in ((num_tokens, hidden), (hidden,)))
    weight = random(rows, hidden, dtype=dtype, device=device, scale=hidden**-0.5)
    bias = random(rows, dtype=dtype, device=device) if biased else None
    wide = None if bias is None else bias.double()
    want = reference.norm_linear(x.double(), norm.double(), weight.double(), 1e-5, wide)
    with running():
        got = kernel.norm_linear(x, norm, weight, 1e-5, bias, launch)
    assert got.dtype == torch.float32
    # Rounded to the weight's dtype, then widened: its tolerance is that dtype's.
    assert nmse(got, want) <= FUSED[dtype]
    assert torch.equal(got, got.to(dtype).float())


def test_calls_against_the_contract_name_the_argument(device: torch.device) -> None:
    x, norm = torch.zeros(1, 8, device=device), torch.ones(8, device=device)
    with pytest.raises(OperatorError, match=r"x has shape \(17, 8\)"):
        norm_linear(x.expand(17, -1), norm, torch.zeros(4, 8, device=device), 1e-5)
