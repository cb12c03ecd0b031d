"""The launch of kernels that keep whole rows in registers (norms, softmax)."""

from dataclasses import dataclass

from lite_llama.kernel_lib.gpu import GpuSpec
from lite_llama.kernel_lib.rows import next_power_of_2

# 16 warps hold 32 float32 values a thread; with 32768 columns and 32 warps rms_norm spills.
MAX_COLUMNS = 16384
# 32 bytes a lane: two 16-byte loads in flight a thread and input.
_BYTES_PER_WARP = 32 * 32
# A program's tile of short rows.
_TILE_BYTES = 4096


@dataclass(frozen=True)
class RowLaunch:
    """A program takes `rows` rows of `block` columns with `num_warps` warps."""

    rows: int
    block: int
    num_warps: int


def choose_row_launch(num_rows: int, num_columns: int, itemsize: int, gpu: GpuSpec) -> RowLaunch:
    """One row a program; short rows share a program once every SM has four programs."""
    block = next_power_of_2(num_columns)
    rows = 1
    while rows * block * itemsize < _TILE_BYTES and num_rows >= 8 * gpu.num_sms * rows:
        rows *= 2
    # A thread holds 32 float32 values at most.
    warps = max(rows * block * itemsize // _BYTES_PER_WARP, rows * block // 1024)
    return RowLaunch(rows, block, num_warps=min(max(warps, 1), 16))
