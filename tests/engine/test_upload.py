from collections.abc import Sequence

import pytest
import torch

from lite_llama.engine.upload import as_tensor, upload


@pytest.mark.parametrize("dtype", [torch.int64, torch.int32, torch.float32], ids=str)
@pytest.mark.parametrize("values", [[], [3], [1, -2, 7], [[1, 2], [3, 4], [5, 6]], [[], []]])
def test_a_tensor_is_what_torch_would_make(values: Sequence[int], dtype: torch.dtype) -> None:
    got = as_tensor(values, dtype)
    want = torch.tensor(values, dtype=dtype)
    assert got.dtype == want.dtype
    assert got.tolist() == want.tolist()
    assert got.shape == want.shape


def test_large_and_broken_numbers_arrive() -> None:
    cpu = torch.device("cpu")
    assert upload([2**62, -(2**62)], torch.int64, cpu).tolist() == [2**62, -(2**62)]
    assert (
        upload([0.1, float("inf")], torch.float32, cpu).tolist()
        == torch.tensor([0.1, float("inf")]).tolist()
    )
