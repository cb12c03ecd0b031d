import pytest
import torch

from lite_llama.errors import OperatorError
from lite_llama.ops import add
from lite_llama.ops.add import kernel
from tests.ops.compare import (
    DTYPES,
    assert_close_to_reference,
    cases,
    non_contiguous,
    poison_new_outputs,
    random,
)
from tests.ops.tolerances import ROWWISE


@pytest.mark.parametrize(
    ("shape", "dtype"), cases([(2, 3), (2, 5, 576)], [(1,), (3, 2880), (64, 513)])
)
def test_kernel_adds_as_torch_does(
    device: torch.device,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = random(*shape, dtype=dtype, device=device)
    y = random(*shape, dtype=dtype, device=device)
    poison_new_outputs(monkeypatch)
    assert_close_to_reference(kernel.add(x, y), x.double() + y.double(), ROWWISE, x + y)


@pytest.mark.parametrize("dtype", DTYPES)
def test_rows_may_be_strided_or_transposed(device: torch.device, dtype: torch.dtype) -> None:
    x = random(3, 40, dtype=dtype, device=device)
    y = random(3, 40, dtype=dtype, device=device)
    assert torch.equal(kernel.add(non_contiguous(x), y), x + y)
    assert torch.equal(kernel.add(x.T, y.T), (x + y).T)


def test_infinities_and_nan_pass_through(device: torch.device) -> None:
    x = torch.tensor([float("inf"), float("inf"), float("nan"), 3e38], device=device)
    y = torch.tensor([1.0, float("-inf"), 1.0, 3e38], device=device)
    got = kernel.add(x, y)
    assert torch.equal(got.isnan(), torch.tensor([False, True, True, False], device=device))
    assert got[0] == got[3] == float("inf")


def test_nothing_plus_nothing_is_nothing(device: torch.device) -> None:
    empty = torch.empty(0, 4, device=device)
    assert add(empty, empty).shape == (0, 4)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: offsets past 2^31 need 4 GiB")
def test_offsets_past_two_to_the_31_are_reached() -> None:
    n = 2**31 + 4096
    x = torch.zeros(n, dtype=torch.bfloat16, device="cuda")
    x[-1] = 3.0
    assert kernel.add(x, x)[-1] == 6.0


def test_calls_against_the_contract_name_the_argument(device: torch.device) -> None:
    x = torch.zeros(2, 3, device=device)
    with pytest.raises(OperatorError, match=r"y has shape \(3,\), expected \(2, 3\)"):
        add(x, x[0])
    with pytest.raises(OperatorError, match=r"y has dtype torch.float16"):
        add(x, x.half())
    with pytest.raises(OperatorError, match=r"x has dtype torch.int64"):
        add(x.long(), x.long())
