"""Row L12 on a GPU: nine minutes, in `make gpu` after the short ones. Not part of a plain run."""

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.server import mixed_load
from tests.server.test_gpu import preset_server_process

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
NUM_CLIENTS = 8


def used_gpu_bytes() -> int:
    free, total = torch.cuda.mem_get_info()
    return total - free


def test_nine_minutes_of_mixed_load_on_a_gpu(
    tmp_path: Path, pytestconfig: pytest.Config, record_property: Any
) -> None:
    """L12: nobody else may use the GPU meanwhile."""
    length_s = pytestconfig.getoption("--gpu-soak-minutes") * 60
    if length_s < 540:
        record_property("shortened", f"{length_s / 60:.0f} of 9 minutes")
    used_gpu_bytes()  # this process' own context comes first
    with preset_server_process(tmp_path, "--max-num-seqs", "16") as server:
        marks = mixed_load.load(server, length_s, NUM_CLIENTS, used_gpu_bytes)
    mixed_load.check_flat(marks)
