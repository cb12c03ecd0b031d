import dataclasses

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lite_llama.errors import OperatorError
from lite_llama.kernel_lib.gpu import H200
from lite_llama.ops import add_rms_norm, rms_norm
from lite_llama.ops.rms_norm import kernel, reference
from tests.ops.compare import (
    DTYPES,
    assert_close_to_reference,
    cases,
    non_contiguous,
    poison_new_outputs,
    random,
    same_bits,
)
from tests.ops.tolerances import FP8_OUTPUT, ROWWISE

EPS = 1e-5


def _exact(x: Tensor, weight: Tensor) -> Tensor:
    wide = x.double()
    scale = torch.rsqrt(wide.square().mean(-1, keepdim=True) + EPS)
    return wide * scale * weight.double()


@pytest.mark.parametrize(
    ("shape", "dtype"),
    cases([(3, 576), (128, 128)], [(1, 4), (2, 2880), (32, 32), (2, 3, 64), (1, 15872)]),
)
def test_kernel_normalises_as_the_definition_says(
    device: torch.device,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = random(*shape, dtype=dtype, device=device)
    weight = random(shape[-1], dtype=dtype, device=device)
    plain = F.rms_norm(x, weight.shape, weight, EPS)
    poison_new_outputs(monkeypatch)
    got = kernel.rms_norm(x, weight, EPS)
    assert_close_to_reference(got, _exact(x, weight), ROWWISE, plain)


@pytest.mark.parametrize("dtype", DTYPES)
def test_residual_is_added_and_rounded_once_before_the_norm(
    device: torch.device, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    x, residual = (random(3, 576, dtype=dtype, device=device) for _ in range(2))
    weight = random(576, dtype=torch.float32, device=device)
    want_total = x + residual
    poison_new_outputs(monkeypatch)
    got, total = kernel.add_rms_norm(x, residual, weight, EPS)
    assert same_bits(total, want_total)
    assert_close_to_reference(got, _exact(want_total, weight), ROWWISE)


def test_fp8_rows_are_normalised_and_returned_in_fp8(device: torch.device) -> None:
    if device.type == "cuda" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("fp8 conversions need Ada or Hopper")
    x = random(2, 8, 512, dtype=torch.float32, device=device, scale=3.0).to(torch.float8_e4m3fn)
    weight = random(512, dtype=torch.float32, device=device)
    got = kernel.rms_norm(x, weight, EPS)
    assert got.dtype == torch.float8_e4m3fn
    assert_close_to_reference(got, _exact(x, weight), FP8_OUTPUT)


def test_a_program_that_walks_many_rows_gives_the_same_bits(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = random(13, 2880, dtype=torch.bfloat16, device=device)
    weight = random(2880, dtype=torch.bfloat16, device=device)
    want = kernel.rms_norm(x, weight, EPS)
    added = kernel.add_rms_norm(x, x, weight, EPS)
    monkeypatch.setattr(kernel, "gpu_spec", lambda _: dataclasses.replace(H200, num_sms=1))
    assert same_bits(kernel.rms_norm(x, weight, EPS), want)
    walked = kernel.add_rms_norm(x, x, weight, EPS)
    assert all(same_bits(*pair) for pair in zip(walked, added, strict=True))


def test_strided_rows_give_the_same_bits(device: torch.device) -> None:
    x = random(3, 576, dtype=torch.bfloat16, device=device)
    weight = random(576, dtype=torch.bfloat16, device=device)
    got = kernel.rms_norm(non_contiguous(x), weight, EPS)
    assert same_bits(got, kernel.rms_norm(x, weight, EPS))


def test_a_row_gives_the_same_bits_alone_and_in_a_batch(device: torch.device) -> None:
    x = random(300, 64, dtype=torch.bfloat16, device=device)
    weight = random(64, dtype=torch.bfloat16, device=device)
    assert same_bits(kernel.rms_norm(x, weight, EPS)[17:18], kernel.rms_norm(x[17:18], weight, EPS))


def test_rows_of_zeros_stay_zero_and_large_rows_stay_finite(device: torch.device) -> None:
    x = torch.zeros(2, 64, device=device)
    x[1] = 1e18
    got = kernel.rms_norm(x, torch.ones(64, device=device), EPS)
    assert torch.equal(got[0], x[0])
    torch.testing.assert_close(got[1], torch.ones(64, device=device))


def test_the_reference_takes_one_row_as_it_takes_many() -> None:
    x, weight = torch.randn(3, 576), torch.randn(576)
    alone = torch.cat([reference.rms_norm(row, weight, 1e-5) for row in x.split(1)])
    torch.testing.assert_close(alone, reference.rms_norm(x, weight, 1e-5), rtol=1e-6, atol=1e-6)
    zeros = torch.zeros(1, 8)
    assert bool((reference.rms_norm(zeros, weight[:8], 1e-5) == 0).all())
    assert bool(reference.rms_norm(zeros, weight[:8], 0.0).isnan().all())


def test_no_rows_give_no_rows(device: torch.device) -> None:
    x, weight = torch.empty(0, 8, device=device), torch.ones(8, device=device)
    assert rms_norm(x, weight, EPS).shape == (0, 8)
    assert [part.shape for part in add_rms_norm(x, x, weight, EPS)] == [(0, 8), (0, 8)]


def test_calls_against_the_contract_name_the_argument(device: torch.device) -> None:
    x, weight = torch.zeros(2, 8, device=device), torch.ones(8, device=device)
    with pytest.raises(OperatorError, match=r"weight has shape \(4,\), expected \(8,\)"):
        rms_norm(x, weight[:4], EPS)
    with pytest.raises(OperatorError, match=r"residual has dtype torch.float16"):
        add_rms_norm(x, x.half(), weight, EPS)
    with pytest.raises(OperatorError, match=r"expected \[\.\.\., 1\.\.16384\]"):
        rms_norm(torch.zeros(1, 40000, device=device), torch.zeros(40000, device=device), EPS)
    with pytest.raises(OperatorError, match="weight has strides"):
        rms_norm(x, torch.ones(16, device=device)[::2], EPS)
