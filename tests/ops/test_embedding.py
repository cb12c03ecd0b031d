import pytest
import torch

from lite_llama.errors import OperatorError
from lite_llama.ops import embedding
from lite_llama.ops.embedding import kernel
from tests.ops.compare import cases, non_contiguous, poison_new_outputs, random, same_bits


@pytest.mark.parametrize(
    ("shapes", "dtype"),
    cases(
        [((50,), (512, 576))],
        [((1,), (2, 3)), ((2, 3), (7, 2880)), ((4,), (9, 5000)), ((), (3, 8))],
    ),
)
def test_rows_are_copied_bit_for_bit(
    device: torch.device,
    dtype: torch.dtype,
    shapes: tuple[tuple[int, ...], tuple[int, int]],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    shape, table_shape = shapes
    table = random(*table_shape, dtype=dtype, device=device)
    indices = torch.randint(0, table_shape[0], shape, device=device)
    poison_new_outputs(monkeypatch)
    assert same_bits(kernel.embedding(indices, table), table[indices])


@pytest.mark.parametrize("index_dtype", [torch.int32, torch.int64])
def test_strided_tables_and_both_index_types(
    device: torch.device, index_dtype: torch.dtype
) -> None:
    table = random(9, 40, dtype=torch.bfloat16, device=device)
    indices = torch.tensor([8, 0, 3, 3, 1, 1], dtype=index_dtype, device=device)
    got = kernel.embedding(indices[::2], non_contiguous(table))
    assert same_bits(got, table[[8, 3, 1]])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: the table takes 4 GiB")
def test_rows_past_two_to_the_31_elements_are_reached() -> None:
    table = torch.zeros(2**20 + 1, 2048, dtype=torch.bfloat16, device="cuda")
    table[-1] = 7
    got = kernel.embedding(torch.tensor([2**20], device="cuda"), table)
    assert same_bits(got, table[-1:])


def test_no_indices_give_no_rows(device: torch.device) -> None:
    indices = torch.empty(0, dtype=torch.int64, device=device)
    assert embedding(indices, torch.zeros(3, 8, device=device)).shape == (0, 8)


def test_calls_against_the_contract_name_the_argument(device: torch.device) -> None:
    table = torch.zeros(3, 8, device=device)
    indices = torch.zeros(1, dtype=torch.int64, device=device)
    with pytest.raises(OperatorError, match=r"indices has dtype torch.float32"):
        embedding(indices.float(), table)
    with pytest.raises(OperatorError, match="expected 2 dimensions"):
        embedding(indices, table[0])
    with pytest.raises(OperatorError, match="table has strides"):
        embedding(indices, table.T)
