from dataclasses import replace

import torch

from lite_llama.kernel_lib.gemv_launch import GemvLaunch, choose_gemv
from lite_llama.kernel_lib.gpu import H200


def test_groups_are_made_in_registers_where_rows_divide() -> None:
    launch = GemvLaunch(2, 2048, 4, groups=4)
    assert launch.num_groups(8192) == 4
    assert launch.num_groups(8196) == 1
    assert replace(launch, num_stages=4).num_groups(8192) == 1
    assert GemvLaunch(2, 2048, 4).num_groups(3) == 1


def test_the_ring_begins_anew_with_each_group_or_there_is_one() -> None:
    ring = GemvLaunch(16, 512, 8, num_stages=2, groups=4)
    assert [ring.ring_groups(columns) for columns in (1024, 1536, 2048)] == [4, 1, 4]


def test_what_cannot_be_a_ring_has_smaller_tiles_in_a_loop() -> None:
    chosen = choose_gemv(2048, 8192, 8)
    assert chosen.is_ring(8192, torch.float16, H200)
    assert (chosen.block_k, chosen.num_warps, chosen.num_stages) == (512, 8, 8)
    constants = replace(chosen, overlap=0.5).constants(8192, H200)
    assert [constants[name] for name in ("BLOCK_K", "num_warps", "STAGES")] == [128, 4, 4]
    assert constants["TRIGGER"] == 31
    # Each of a program's tiles in float32, and as many of x.
    assert H200.shared_bytes_per_block > 4 * 4 * (32 + 8) * 128


def test_every_preset_decodes_eight_sequences_by_rings() -> None:
    for rows, columns in ((1536, 1536), (8192, 3072), (128256, 2048), (1536, 8960), (896, 4864)):
        chosen = choose_gemv(rows, columns, 8)
        assert chosen.is_ring(columns, torch.bfloat16, H200), (rows, columns)
        bytes_in_flight = 2 * chosen.block_n * chosen.block_k * chosen.num_stages
        assert bytes_in_flight < H200.shared_bytes_per_block
