import dataclasses

import pytest
import torch
import torch.nn.functional as F

from lite_llama.errors import OperatorError
from lite_llama.kernel_lib.gpu import H200
from lite_llama.ops import layer_norm
from lite_llama.ops.layer_norm import kernel
from tests.ops.compare import (
    assert_close_to_reference,
    cases,
    non_contiguous,
    poison_new_outputs,
    random,
    same_bits,
)
from tests.ops.tolerances import ROWWISE

EPS = 1e-5


@pytest.mark.parametrize(
    ("shape", "dtype"),
    cases([(3, 576), (128, 128)], [(1, 1), (32, 64), (2, 2880), (1, 15872)]),
)
def test_kernel_normalises_as_torch_does(
    device: torch.device,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = random(*shape, dtype=dtype, device=device) + 3
    weight, bias = (random(shape[-1], dtype=dtype, device=device) for _ in range(2))
    want = F.layer_norm(x.double(), weight.shape, weight.double(), bias.double(), EPS)
    plain = F.layer_norm(x, weight.shape, weight, bias, EPS)
    poison_new_outputs(monkeypatch)
    assert_close_to_reference(kernel.layer_norm(x, weight, bias, EPS), want, ROWWISE, plain)


def test_a_mean_far_from_zero_costs_no_accuracy(device: torch.device) -> None:
    x = random(4, 128, dtype=torch.float32, device=device) + 1000
    one, zero = torch.ones(128, device=device), torch.zeros(128, device=device)
    want = F.layer_norm(x.double(), (128,), eps=EPS)
    assert_close_to_reference(kernel.layer_norm(x, one, zero, EPS), want, {torch.float32: 1e-8})


def test_a_program_that_walks_many_rows_gives_the_same_bits(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = random(13, 2880, dtype=torch.bfloat16, device=device)
    weight = random(2880, dtype=torch.bfloat16, device=device)
    want = kernel.layer_norm(x, weight, weight, EPS)
    monkeypatch.setattr(kernel, "gpu_spec", lambda _: dataclasses.replace(H200, num_sms=1))
    assert same_bits(kernel.layer_norm(x, weight, weight, EPS), want)


def test_strided_rows_give_the_same_bits(device: torch.device) -> None:
    x = random(3, 576, dtype=torch.bfloat16, device=device)
    weight, bias = (random(576, dtype=torch.bfloat16, device=device) for _ in range(2))
    got = kernel.layer_norm(non_contiguous(x), weight, bias, EPS)
    assert same_bits(got, kernel.layer_norm(x, weight, bias, EPS))


def test_no_rows_give_no_rows(device: torch.device) -> None:
    one = torch.ones(8, device=device)
    assert layer_norm(torch.empty(0, 8, device=device), one, one, EPS).shape == (0, 8)


def test_calls_against_the_contract_name_the_argument(device: torch.device) -> None:
    x, one = torch.zeros(2, 8, device=device), torch.ones(8, device=device)
    with pytest.raises(OperatorError, match=r"bias has shape \(4,\), expected \(8,\)"):
        layer_norm(x, one, one[:4], EPS)
    with pytest.raises(OperatorError, match=r"x has dtype torch.float64"):
        layer_norm(x.double(), one, one, EPS)
