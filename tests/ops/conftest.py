"""Kernels are called on the GPU where there is one, and in Triton's interpreter where not."""

from collections.abc import Iterator

import numpy as np
import pytest
import torch

if not torch.cuda.is_available():
    from tests import triton_interpreter

    triton_interpreter.install()
    np.seterr(all="ignore")  # the interpreter computes in numpy; infinities are part of the tests


@pytest.fixture(scope="session")
def device() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _give_memory_back() -> Iterator[None]:
    """Workers share one GPU: what a large case took must not stay with the worker that ran it."""
    yield
    if torch.cuda.is_available() and torch.cuda.memory_reserved() > 2**31:
        torch.cuda.empty_cache()
