import pytest
import torch

from lite_llama.errors import OperatorError
from lite_llama.kernel_lib.argmax_launch import ArgmaxLaunch, choose_argmax
from lite_llama.ops import argmax
from lite_llama.ops.argmax import kernel
from tests.ops.compare import cases, non_contiguous, poison_new_outputs, random, same_bits


@pytest.mark.parametrize(
    ("shape", "dtype"),
    cases([(3, 576), (2, 4097)], [(4,), (1, 1), (4096,), (2, 2, 2880), (1, 128256)]),
)
def test_value_and_first_index_of_the_largest(
    device: torch.device,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = random(*shape, dtype=dtype, device=device)
    want_values = x.max(dim=-1).values
    columns = torch.arange(shape[-1], device=device)
    want = torch.where(x == want_values.unsqueeze(-1), columns, shape[-1]).amin(-1)
    poison_new_outputs(monkeypatch)
    values, indices = kernel.argmax(x)
    assert same_bits(values, want_values)
    assert torch.equal(indices, want)


def test_the_lowest_index_wins_within_and_across_pieces(device: torch.device) -> None:
    x = torch.zeros(3, 10000, device=device)
    x[0, [7, 9000]] = 1.0
    x[1, [9000, 9001]] = 1.0
    x[2, 0] = -0.0
    assert kernel.argmax(x)[1].tolist() == [7, 9000, 0]


def test_infinities_and_nan_order_as_in_torch(device: torch.device) -> None:
    x = torch.full((4, 5000), float("-inf"), device=device)
    x[1, 4999] = -3e38
    x[2, [10, 20]] = float("inf")
    x[3, 40], x[3, 4500] = float("inf"), float("nan")
    values, indices = kernel.argmax(x)
    assert indices.tolist() == [0, 4999, 10, 4500]
    assert same_bits(values, x.gather(1, indices[:, None])[:, 0])


def test_strided_rows(device: torch.device) -> None:
    x = random(3, 576, dtype=torch.bfloat16, device=device)
    for strided in (non_contiguous(x), x.T.contiguous().T):
        values, indices = kernel.argmax(strided)
        assert same_bits(values, kernel.argmax(x)[0])
        assert torch.equal(indices, kernel.argmax(x)[1])


def test_splits_depend_on_the_row_alone() -> None:
    assert choose_argmax(128256) == ArgmaxLaunch(splits=63, block=2048, num_warps=2)
    assert choose_argmax(4096) == ArgmaxLaunch(splits=1, block=4096, num_warps=16)
    assert choose_argmax(3) == ArgmaxLaunch(splits=1, block=4, num_warps=1)


def test_no_rows_and_calls_against_the_contract(device: torch.device) -> None:
    values, indices = argmax(torch.empty(0, 4, device=device))
    assert values.shape == indices.shape == (0,)
    with pytest.raises(OperatorError, match=r"x has shape \(2, 0\)"):
        argmax(torch.empty(2, 0, device=device))
    with pytest.raises(OperatorError, match=r"x has dtype torch.int32"):
        argmax(torch.zeros(4, dtype=torch.int32, device=device))
