import torch

from lite_llama.kernel_lib.rows import as_rows, ceil_div, next_power_of_2


def test_rows_are_a_view_where_one_exists() -> None:
    x = torch.arange(48.0).view(2, 3, 8)
    assert as_rows(x).data_ptr() == x.data_ptr()
    sliced = x[..., :4]
    assert as_rows(sliced).data_ptr() == x.data_ptr()
    assert as_rows(sliced).stride() == (8, 1)
    assert torch.equal(as_rows(x.transpose(0, 2)), x.transpose(0, 2).reshape(-1, 2))


def test_rounding_helpers() -> None:
    assert [ceil_div(n, 4) for n in (1, 4, 5)] == [1, 1, 2]
    assert [next_power_of_2(n) for n in (1, 2, 3, 576, 1024, 2880)] == [1, 2, 4, 1024, 1024, 4096]
