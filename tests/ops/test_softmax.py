import dataclasses

import pytest
import torch

from lite_llama.errors import OperatorError
from lite_llama.kernel_lib.gpu import H200
from lite_llama.ops import softmax
from lite_llama.ops.softmax import kernel
from tests.ops.compare import (
    assert_close_to_reference,
    cases,
    non_contiguous,
    poison_new_outputs,
    random,
    same_bits,
)
from tests.ops.tolerances import ROWWISE


@pytest.mark.parametrize(
    ("shape", "dtype"),
    cases([(3, 576), (128, 128), (2, 40000)], [(1, 1), (32, 64), (2, 2880), (1, 12672)]),
)
def test_kernel_matches_the_definition(
    device: torch.device,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = random(*shape, dtype=dtype, device=device, scale=4.0)
    want, plain = torch.softmax(x.double(), dim=-1), torch.softmax(x, dim=-1)
    poison_new_outputs(monkeypatch)
    assert_close_to_reference(kernel.softmax(x), want, ROWWISE, plain)


@pytest.mark.parametrize("n", [100, 40000])
def test_extreme_and_masked_logits(device: torch.device, n: int) -> None:
    x = torch.full((3, n), float("-inf"), device=device)
    x[0, :2] = 3e38
    x[1, n - 1] = -3e38
    got = kernel.softmax(x)
    assert got[0, :2].tolist() == [0.5, 0.5]
    assert got[1, n - 1] == 1
    assert got[:2].sum() == 2
    assert got[2].isnan().all()


def test_a_program_that_walks_many_rows_gives_the_same_bits(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = random(13, 2880, dtype=torch.bfloat16, device=device)
    want = kernel.softmax(x)
    monkeypatch.setattr(kernel, "gpu_spec", lambda _: dataclasses.replace(H200, num_sms=1))
    assert same_bits(kernel.softmax(x), want)


def test_strided_rows_give_the_same_bits(device: torch.device) -> None:
    x = random(3, 576, dtype=torch.bfloat16, device=device)
    assert same_bits(kernel.softmax(non_contiguous(x)), kernel.softmax(x))
    assert same_bits(kernel.softmax(x)[1:2], kernel.softmax(x[1:2]))


def test_no_rows_give_no_rows(device: torch.device) -> None:
    assert softmax(torch.empty(0, 8, device=device)).shape == (0, 8)


def test_calls_against_the_contract_name_the_argument(device: torch.device) -> None:
    with pytest.raises(OperatorError, match=r"x has dtype torch.int64"):
        softmax(torch.zeros(2, 3, dtype=torch.int64, device=device))
    with pytest.raises(OperatorError, match=r"x has shape \(\)"):
        softmax(torch.zeros((), device=device))
