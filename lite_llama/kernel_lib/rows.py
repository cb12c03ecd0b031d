"""How kernels that work row by row see their tensors."""

from torch import Tensor


def as_rows(x: Tensor) -> Tensor:
    """`x` [..., n] as [num_rows, n] with adjacent columns: a view, or a copy where none exists."""
    rows = x.reshape(-1, x.shape[-1]) if x.dim() != 2 else x
    return rows if rows.stride(1) == 1 or rows.shape[1] == 1 else rows.contiguous()


def as_fewest_rows(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """Two tensors of one shape as rows, see `as_rows`: as a single one if both are contiguous."""
    if x.is_contiguous() and y.is_contiguous():
        return x.view(1, -1), y.view(1, -1)
    return as_rows(x), as_rows(y)


def ceil_div(a: int, b: int) -> int:
    """a / b, rounded up."""
    return -(-a // b)


def next_power_of_2(n: int) -> int:
    """The smallest power of two that is at least n (n >= 1)."""
    return 1 << (n - 1).bit_length()
