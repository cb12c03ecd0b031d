"""Row L12 on a GPU: nine minutes, in `make gpu` after the short ones. Not part of a plain run."""

import os
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.server import mixed_load
from tests.server.servers import server_process

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.timeout(3600),
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]
ROOT = Path(__file__).parents[2]
NUM_CLIENTS = 8

PRESET_SERVER = """
import sys
from lite_llama.server import run
from lite_llama.server.config import ServeConfig
from tests.server.test_gpu import PresetLLM
run.LLM = PresetLLM
phases = run.Phases(lambda line: print(line, flush=True))
sys.exit(run.serve('preset', ServeConfig(port=0), {'max_num_seqs': 16}, phases))
"""


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
    (tmp_path / "preset_server.py").write_text(PRESET_SERVER)
    environment = {"PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT), *sys.path])}
    used_gpu_bytes()  # this process' own context comes first
    with server_process(tmp_path, main="preset_server", environment=environment) as server:
        marks = mixed_load.load(server, length_s, NUM_CLIENTS, used_gpu_bytes)
    mixed_load.check_flat(marks)
