"""How a row is split over programs."""

from dataclasses import dataclass

from lite_llama.kernel_lib.rows import ceil_div, next_power_of_2

# 256 threads with 64 bytes of float32 each; 8 rows of 128256 make 256 programs.
_BLOCK = 4096
# The second kernel holds a row's partial results in registers.
_MAX_SPLITS = 8192
MAX_COLUMNS = _BLOCK * _MAX_SPLITS


@dataclass(frozen=True)
class ArgmaxLaunch:
    """A row is cut into `splits` pieces of `block` columns."""

    splits: int
    block: int
    num_warps: int


def choose_launch(num_columns: int) -> ArgmaxLaunch:
    """Splits depend on the row alone, so that a row gives the same bits in any batch."""
    block = min(next_power_of_2(num_columns), _BLOCK)
    return ArgmaxLaunch(ceil_div(num_columns, block), block, num_warps=max(1, block // 512))
