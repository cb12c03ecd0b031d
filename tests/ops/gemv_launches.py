"""Batch sizes and launches that every product of the decode chain is tested with."""

from dataclasses import replace

import pytest
import torch

from lite_llama.kernel_lib.gemv_launch import GemvLaunch

_LAUNCHES = [
    (1, GemvLaunch(8, 64, 1)),
    (1, GemvLaunch(4, 32, 2, overlap=0.0)),
    (1, GemvLaunch(8, 64, 2, overlap=0.5, preload=False, prefetch=1.0)),
    (1, GemvLaunch(8, 128, 4, overlap=1.0, prefetch=0.5)),
    (2, GemvLaunch(8, 64, 1, num_stages=1)),
    (3, GemvLaunch(16, 64, 2, num_stages=2, overlap=0.5, prefetch=1.0)),
    (8, GemvLaunch(16, 128, 1, num_stages=4, overlap=0.0, preload=False)),
    (16, GemvLaunch(32, 64, 4, num_stages=2, overlap=1.0, prefetch=0.5)),
]


def _named(num_tokens: int, launch: GemvLaunch) -> object:
    how = f"{launch.num_stages}-tiles" if launch.num_stages else "gemv"
    return pytest.param(
        num_tokens, launch, id=f"{num_tokens}-{launch.block_n}x{launch.block_k}-{how}"
    )


over_launches = pytest.mark.parametrize(
    ("num_tokens", "launch"), [_named(*each) for each in _LAUNCHES]
)


def on(device: torch.device, dtype: torch.dtype, launch: GemvLaunch) -> GemvLaunch:
    """The launch as it runs there: the interpreter has no dependent launches."""
    if launch.num_stages and dtype == torch.float32:
        pytest.skip("several tokens: 16-bit types only")
    if device.type == "cuda":
        return launch
    if launch.num_stages:
        pytest.skip("no GPU: Gluon has no interpreter")
    return replace(launch, overlap=-1.0)
