from lite_llama.kernel_lib.gpu import H200
from lite_llama.kernel_lib.row_launch import (
    MAX_COLUMNS,
    PieceLaunch,
    RowLaunch,
    choose_piece_launch,
    choose_row_launch,
    programs_at_once,
)


def test_walking_programs_fill_the_sms_and_are_no_more_than_tiles() -> None:
    bf16 = choose_row_launch(4096, 4096, 2, H200)
    assert bf16 == RowLaunch(1, 4096, num_warps=8, tiles=4096)
    assert programs_at_once(bf16, 2, 3.0, H200) == 528
    float32 = choose_row_launch(4096, 4096, 4, H200)
    assert float32 == RowLaunch(1, 4096, num_warps=16, tiles=4096)
    assert programs_at_once(float32, 4, 3.0, H200) == 264
    assert programs_at_once(choose_row_launch(7, 4096, 2, H200), 2, 3.0, H200) == 7


def test_short_rows_share_a_program_only_when_there_are_many() -> None:
    assert choose_row_launch(65536, 64, 2, H200).rows == 32
    assert choose_row_launch(64, 64, 2, H200) == RowLaunch(1, 64, num_warps=1, tiles=64)


def test_no_thread_holds_more_than_64_values() -> None:
    for columns in (1, 576, 2880, 16384, MAX_COLUMNS):
        for itemsize in (1, 2, 4):
            launch = choose_row_launch(4096, columns, itemsize, H200)
            assert launch.block >= columns
            assert launch.rows * launch.block <= 32 * launch.num_warps * 32


def test_elementwise_programs_have_16_bytes_a_thread_and_little_of_little() -> None:
    assert choose_piece_launch(1, 6, 2, H200) == PieceLaunch(8, num_warps=1)
    assert choose_piece_launch(1, 8192, 2, H200) == PieceLaunch(256, num_warps=4)
    assert choose_piece_launch(4096, 8192, 2, H200) == PieceLaunch(1024, num_warps=4)
    assert choose_piece_launch(4096, 8192, 4, H200) == PieceLaunch(512, num_warps=4)
