"""How a row is split over programs that look for its largest value, and one that joins them."""

from dataclasses import dataclass

from lite_llama.kernel_lib.rows import ceil_div, next_power_of_2

# A short row is one piece with 8 values a thread; pieces of long ones give a thread 32, which won
# from 8 rows of 128256 on.
_WHOLE_ROW, _BLOCK = 4096, 2048
# The second kernel holds a row's partial results in registers.
_MAX_SPLITS = 16384
MAX_COLUMNS = _BLOCK * _MAX_SPLITS


@dataclass(frozen=True)
class ArgmaxLaunch:
    """A row is cut into `splits` pieces of `block` columns."""

    splits: int
    block: int
    num_warps: int

    @property
    def joining_block(self) -> int:
        """Columns of the second kernel, which holds a value of each piece."""
        return next_power_of_2(self.splits)

    @property
    def joining_warps(self) -> int:
        """Its warps."""
        return max(1, min(16, self.joining_block // 128))


def choose_argmax(num_columns: int) -> ArgmaxLaunch:
    """Splits depend on the row alone, so that a row gives the same bits in any batch."""
    if num_columns <= _WHOLE_ROW:
        block = next_power_of_2(num_columns)
        return ArgmaxLaunch(1, block, num_warps=max(1, block // 256))
    return ArgmaxLaunch(ceil_div(num_columns, _BLOCK), _BLOCK, num_warps=2)
