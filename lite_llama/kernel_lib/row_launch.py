"""The launches of kernels that keep whole rows in registers, and of elementwise ones."""

from dataclasses import dataclass

from lite_llama.kernel_lib.gpu import GpuSpec
from lite_llama.kernel_lib.rows import ceil_div, next_power_of_2

# With 32768 columns rms_norm spills even with 32 warps.
MAX_COLUMNS = 16384
# Of a row a lane: two 16-byte loads in flight a thread and input.
_LANE_BYTES = 32
# A program's tile of short rows.
_TILE_BYTES = 4096
# An SM's registers, and what a thread needs beside a row's values (ptxas).
_REGISTERS_PER_SM, _OTHER_REGISTERS = 65536, 16


@dataclass(frozen=True)
class RowLaunch:
    """`tiles` tiles of `rows` rows of `block` columns, each for a program of `num_warps` warps."""

    rows: int
    block: int
    num_warps: int
    tiles: int


def choose_row_launch(
    num_rows: int, num_columns: int, itemsize: int, gpu: GpuSpec, lane_bytes: int = _LANE_BYTES
) -> RowLaunch:
    """A row a tile; short rows share one once every SM has four programs.

    `lane_bytes`: of a tile, as many as a lane holds, unless that would be too many warps.
    """
    block = next_power_of_2(num_columns)
    rows = 1
    while rows * block * itemsize < _TILE_BYTES and num_rows >= 8 * gpu.num_sms * rows:
        rows *= 2
    num_bytes = rows * block * itemsize
    # rms_norm of 16384 float32 values spills with 16 warps.
    most = 32 if num_bytes > 32 * 1024 else 16
    num_warps = min(max(num_bytes // (32 * lane_bytes), 1), most)
    return RowLaunch(rows, block, num_warps, ceil_div(num_rows, rows))


def programs_at_once(
    launch: RowLaunch, itemsize: int, registers_per_value: float, gpu: GpuSpec
) -> int:
    """As many programs as fit the SMs at once, for kernels that walk the tiles: none starts when
    others end, weights are read once, and the next rows load during the sums.

    `registers_per_value` of a 16-bit row is what the kernel holds of each; float32 takes 1.5 more.
    """
    threads = 32 * launch.num_warps
    per_value = registers_per_value + (1.5 if itemsize == 4 else 0)
    registers = _OTHER_REGISTERS + launch.rows * launch.block / threads * per_value
    per_sm = max(int(_REGISTERS_PER_SM / (threads * registers)), 1)
    return min(launch.tiles, gpu.num_sms * per_sm)


@dataclass(frozen=True)
class PieceLaunch:
    """A program takes `block` neighbours of a row with `num_warps` warps."""

    block: int
    num_warps: int


def choose_piece_launch(num_rows: int, n: int, itemsize: int, gpu: GpuSpec) -> PieceLaunch:
    """16 bytes a thread; of few values 2 a thread, over as many SMs as there are."""
    block = min(next_power_of_2(n), 2048 // itemsize)
    if num_rows * ceil_div(n, block) < gpu.num_sms:
        block = min(block, 256)
        return PieceLaunch(block, max(1, block // 64))
    return PieceLaunch(block, max(1, block * itemsize // 512))
