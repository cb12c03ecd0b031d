"""Batch sizes and launches that every product of the decode chain is tested with."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import replace

import pytest
import torch

from lite_llama.kernel_lib.gemv_launch import GemvLaunch

# What a launch is to be made within, such as a machine that executes it.
Running = Callable[[], AbstractContextManager[None]]

_LAUNCHES = [
    (1, GemvLaunch(8, 64, 1)),
    (1, GemvLaunch(4, 64, 2, overlap=0.0)),
    (1, GemvLaunch(4, 64, 2, overlap=0.0, groups=2)),
    (1, GemvLaunch(2, 256, 2, overlap=0.0, groups=4)),
    (2, GemvLaunch(2, 256, 2, overlap=0.8, preload=False, groups=4)),
    (2, GemvLaunch(8, 64, 2, overlap=0.5, preload=False, prefetch=1.0)),
    (1, GemvLaunch(8, 128, 4, overlap=1.0, prefetch=0.5)),
    (2, GemvLaunch(4, 512, 2)),
    (4, GemvLaunch(16, 64, 4, num_stages=3, overlap=0.0, preload=False, prefetch=1.0)),
    (8, GemvLaunch(32, 32, 2, num_stages=2, overlap=0.6, preload=False)),
    (11, GemvLaunch(16, 64, 4, num_stages=2, overlap=0.0, preload=False)),
]
# Without a GPU tests/kernel_lib/test_decode_ring.py has them.
_RINGS = [
    (1, GemvLaunch(16, 64, 2, num_stages=3, overlap=0.0)),
    (3, GemvLaunch(16, 64, 2, num_stages=3, overlap=0.0)),
    (5, GemvLaunch(16, 512, 8, num_stages=4, overlap=0.0)),
    (8, GemvLaunch(16, 64, 1, num_stages=3, overlap=0.6, groups=2)),
    (9, GemvLaunch(16, 512, 8, num_stages=4, overlap=0.0)),
    (16, GemvLaunch(16, 64, 2, num_stages=3, overlap=0.6, groups=2)),
]
if torch.cuda.is_available():
    _LAUNCHES += _RINGS


def _named(num_tokens: int, launch: GemvLaunch) -> object:
    how = f"{launch.num_stages} stages" if launch.num_stages else "registers"
    how += "" if launch.preload else "-late"
    how += f"-{launch.groups} groups" if launch.groups > 1 else ""
    return pytest.param(
        num_tokens, launch, id=f"{num_tokens}-{launch.block_n}x{launch.block_k}-{how}"
    )


over_launches = pytest.mark.parametrize(
    ("num_tokens", "launch"), [_named(*each) for each in _LAUNCHES]
)


def on(device: torch.device, launch: GemvLaunch) -> GemvLaunch:
    """The launch as it runs there: the interpreter has no dependent launches."""
    return launch if device.type == "cuda" else replace(launch, overlap=-1.0)
