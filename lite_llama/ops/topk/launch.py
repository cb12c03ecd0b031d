"""How a row is split over programs."""

from dataclasses import dataclass

from lite_llama.kernel_lib.rows import ceil_div, next_power_of_2

MAX_K = 256
# Each piece hands on K candidates, and ranking is quadratic in their number: fewer, larger pieces
# for larger K (16384 columns spill).
_SMALL_K, _SMALL_BLOCK, _LARGE_BLOCK = 64, 4096, 8192
# Columns are numbered in 31 bits, and candidates of a row are all compared with each other.
MAX_COLUMNS = 2**21


@dataclass(frozen=True)
class TopkLaunch:
    """A row is cut into `splits` pieces of `block` columns, each with at least k lanes."""

    splits: int
    block: int
    num_warps: int


def choose_launch(num_columns: int, k: int) -> TopkLaunch:
    """Splits depend on the row alone, so that a row gives the same bits in any batch."""
    largest = _SMALL_BLOCK if k <= _SMALL_K else _LARGE_BLOCK
    block = max(min(next_power_of_2(num_columns), largest), 32)
    return TopkLaunch(ceil_div(num_columns, block), block, num_warps=min(max(block // 512, 1), 16))
