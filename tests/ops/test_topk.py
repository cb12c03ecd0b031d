import pytest
import torch

from lite_llama.errors import OperatorError
from lite_llama.ops import topk
from lite_llama.ops.topk import kernel, reference
from lite_llama.ops.topk.launch import MAX_COLUMNS, MAX_K, TopkLaunch, choose_launch
from tests.ops.compare import cases, non_contiguous, poison_new_outputs, random, same_bits


@pytest.mark.parametrize(
    ("problem", "dtype"),
    cases(
        [((2, 9000), 50)],
        [((4,), 4), ((3, 576), 1), ((2, 2880), 5), ((1, 30000), 5), ((1, 20000), 256)],
    ),
)
def test_values_and_indices_match_a_stable_sort(
    device: torch.device,
    dtype: torch.dtype,
    problem: tuple[tuple[int, ...], int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shape, k = problem
    x = random(*shape, dtype=dtype, device=device)  # half precision brings many ties
    want_values, want_indices = reference.topk(x, k)
    poison_new_outputs(monkeypatch)
    values, indices = kernel.topk(x, k)
    assert same_bits(values, want_values)
    assert torch.equal(indices, want_indices)


@pytest.mark.parametrize("n", [40, 9000])
def test_equal_values_come_in_index_order(device: torch.device, n: int) -> None:
    x = torch.zeros(2, n, device=device)
    x[1] = float("-inf")
    _, indices = kernel.topk(x, 20)
    assert indices.tolist() == [list(range(20))] * 2


def test_nan_comes_first_and_negative_infinity_last(device: torch.device) -> None:
    x = torch.full((1, 5000), float("-inf"), device=device)
    x[0, [3, 4500, 10]] = torch.tensor([1.0, float("nan"), float("inf")], device=device)
    _, indices = kernel.topk(x, 5)
    assert indices.tolist() == [[4500, 10, 3, 0, 1]]


def test_a_row_gives_the_same_result_strided_alone_and_in_a_batch(device: torch.device) -> None:
    x = random(3, 5000, dtype=torch.bfloat16, device=device)
    want = kernel.topk(x, 7)
    for got, part in ((kernel.topk(non_contiguous(x), 7), slice(3)), (kernel.topk(x[1:2], 7), 1)):
        assert same_bits(got[0], want[0][part].view(-1, 7))
        assert torch.equal(got[1], want[1][part].view(-1, 7))


def test_what_one_program_holds_is_bounded() -> None:
    assert choose_launch(128256, 50) == TopkLaunch(16, 8016, 8192, k_block=64, block=4096)
    assert choose_launch(4, 4) == TopkLaunch(16, 1, 1, k_block=16, block=16)
    largest = choose_launch(MAX_COLUMNS, MAX_K)
    assert largest.groups_block == largest.k_block * largest.group == 16384


def test_no_rows_and_calls_against_the_contract(device: torch.device) -> None:
    x = torch.zeros(2, 1000, device=device)
    values, indices = topk(x[:0], 5)
    assert values.shape == indices.shape == (0, 5)
    with pytest.raises(OperatorError, match=r"k is 257, expected 1\.\.256"):
        topk(x, 257)
    with pytest.raises(OperatorError, match=r"k is 5, expected 1\.\.4 for rows of 4 values"):
        topk(x[:, :4], 5)
    with pytest.raises(OperatorError, match="k is 0"):
        topk(x, 0)
