from contextlib import nullcontext

import pytest
import torch

from lite_llama.errors import OperatorError
from lite_llama.kernel_lib.gemv_launch import GemvLaunch
from lite_llama.ops import linear_add
from lite_llama.ops.linear_add import kernel
from tests.ops.compare import DTYPES, assert_close_to_reference, poison_new_outputs, random
from tests.ops.gemv_launches import Running, on, over_launches
from tests.ops.tolerances import GEMM


@pytest.mark.parametrize("dtype", DTYPES)
@over_launches
@pytest.mark.parametrize(
    ("rows", "columns", "biased"),
    [(64, 64, False), (37, 576, True), (16, 2880, False), (40, 1024, True)],
)
def test_residual_and_product_add_up(
    device: torch.device,
    dtype: torch.dtype,
    num_tokens: int,
    launch: GemvLaunch,
    rows: int,
    columns: int,
    biased: bool,  # noqa: FBT001
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    poison_new_outputs(monkeypatch)
    check(num_tokens, on(device, launch), rows, columns, dtype, device, biased=biased)


def check(
    num_tokens: int, launch: GemvLaunch, rows: int, columns: int, dtype: torch.dtype,
    device: torch.device, *, biased: bool = False, running: Running = nullcontext,
) -> None:  # fmt: skip
    """Compare a launch, made while something is `running`, with the reference."""
    x = random(num_tokens, columns, dtype=dtype, device=device)
    weight = random(rows, columns, dtype=dtype, device=device, scale=columns**-0.5)
    residual = random(num_tokens, rows, dtype=dtype, device=device)
    bias = random(rows, dtype=dtype, device=device) if biased else None
    want = residual.double() + x.double() @ weight.double().T
    if bias is not None:
        want += bias.double()
    with running():
        got = kernel.linear_add(x, weight, residual, bias, launch)
    assert_close_to_reference(
        got,
        want,
        GEMM,
        linear_add(x.cpu(), weight.cpu(), residual.cpu(), None if bias is None else bias.cpu()).to(
            device
        ),
    )


def test_calls_against_the_contract_name_the_argument(device: torch.device) -> None:
    x, weight = torch.zeros(1, 8, device=device), torch.zeros(4, 8, device=device)
    with pytest.raises(OperatorError, match=r"residual has shape \(1, 3\)"):
        linear_add(x, weight, torch.zeros(1, 3, device=device))
    with pytest.raises(OperatorError, match=r"weight has dtype torch.float16"):
        linear_add(x, weight.half(), torch.zeros(1, 4, device=device))
    with pytest.raises(OperatorError, match="expected contiguous"):
        linear_add(x, torch.zeros(8, 4, device=device).T, torch.zeros(1, 4, device=device))
