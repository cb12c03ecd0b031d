"""The launch of kernels that keep whole rows in registers (norms, softmax)."""

from dataclasses import dataclass

from lite_llama.kernel_lib.gpu import GpuSpec
from lite_llama.kernel_lib.rows import next_power_of_2

# With 32768 columns rms_norm spills even with 32 warps.
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
    num_bytes = rows * block * itemsize
    # rms_norm of 16384 float32 values spills with 16 warps.
    most = 32 if num_bytes > 32 * 1024 else 16
    return RowLaunch(rows, block, num_warps=min(max(num_bytes // _BYTES_PER_WARP, 1), most))
