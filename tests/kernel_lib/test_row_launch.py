from lite_llama.kernel_lib.gpu import H200
from lite_llama.kernel_lib.row_launch import MAX_COLUMNS, RowLaunch, choose_row_launch


def test_long_rows_get_a_program_each() -> None:
    assert choose_row_launch(4096, 4096, 2, H200) == RowLaunch(rows=1, block=4096, num_warps=8)
    assert choose_row_launch(4096, 4096, 4, H200) == RowLaunch(rows=1, block=4096, num_warps=16)


def test_short_rows_share_a_program_only_when_there_are_many() -> None:
    assert choose_row_launch(65536, 64, 2, H200).rows == 32
    assert choose_row_launch(64, 64, 2, H200) == RowLaunch(rows=1, block=64, num_warps=1)


def test_no_thread_holds_more_than_64_values() -> None:
    for columns in (1, 576, 2880, 16384, MAX_COLUMNS):
        for itemsize in (1, 2, 4):
            launch = choose_row_launch(4096, columns, itemsize, H200)
            assert launch.block >= columns
            assert launch.rows * launch.block <= 32 * launch.num_warps * 32
