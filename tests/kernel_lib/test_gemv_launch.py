from dataclasses import replace

from lite_llama.kernel_lib.gemv_launch import GemvLaunch


def test_groups_are_made_where_tiles_hold_whole_rows_and_rows_divide() -> None:
    launch = GemvLaunch(2, 2048, 4, groups=4)
    assert launch.num_groups(8192, 2048) == 4
    assert launch.num_groups(8192, 1536) == 4
    assert launch.num_groups(8192, 2049) == 1
    assert launch.num_groups(8196, 2048) == 1
    assert replace(launch, num_stages=4).num_groups(8192, 2048) == 1
    assert GemvLaunch(2, 2048, 4).num_groups(3, 9) == 1
