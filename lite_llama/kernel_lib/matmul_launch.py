"""How a product with a weight matrix runs: which kernel, which tile. Pure, and free of Triton."""

from dataclasses import dataclass
from typing import Literal

import torch

from lite_llama.kernel_lib.gpu import GpuSpec


@dataclass(frozen=True)
class MatmulProblem:
    """y [m, n] = x [m, k] wᵀ. `gated`: w holds n gate rows, then n up rows.

    `tma_ready`: base addresses and row strides of x and w are multiples of 16 bytes.
    """

    m: int
    n: int
    k: int
    dtype: torch.dtype
    gated: bool = False
    tma_ready: bool = True


@dataclass(frozen=True)
class MatmulLaunch:
    """`kind`: "vector" multiplies one row, "tile" uses the tensor cores, "cublas" calls torch."""

    kind: Literal["vector", "tile", "cublas"]
    block_m: int = 1
    block_n: int = 1
    block_k: int = 1
    num_warps: int = 4
    num_stages: int = 1
    use_tma: bool = False
    group_m: int = 8


def choose_launch(problem: MatmulProblem, gpu: GpuSpec) -> MatmulLaunch:
    """The kernel and tile for this problem on this GPU."""
    if problem.m == 1 and problem.dtype.itemsize > 1:
        return _choose_vector(problem)
    if problem.m <= 64:
        return _choose_skinny(problem, gpu)
    if problem.dtype.itemsize > 1 and not problem.gated:
        return MatmulLaunch("cublas")
    return _choose_square(problem, gpu)


def _choose_vector(problem: MatmulProblem) -> MatmulLaunch:
    """One row: the weight streams through registers."""
    block_k = 512 if problem.k % 1024 else 1024
    rows = 2 if problem.gated or problem.n * problem.k < 2**23 else 4
    return MatmulLaunch("vector", 1, rows, block_k, num_warps=4)


def _choose_skinny(problem: MatmulProblem, gpu: GpuSpec) -> MatmulLaunch:
    """Few rows: narrow tiles, so that every SM streams its share of the weight."""
    block_m = max(16, 1 << (problem.m - 1).bit_length())
    item = problem.dtype.itemsize
    block_n = 32
    while block_n > 16 and problem.n < block_n * gpu.num_sms:
        block_n //= 2
    if problem.gated:
        block_n = 16
    if problem.dtype == torch.float32:
        return MatmulLaunch("tile", block_m, block_n, 64, 4, 2)
    block_k = 256 // item
    # Half the shared memory of an SM, so that two programs overlap.
    stage = (block_m + block_n * (2 if problem.gated else 1)) * block_k * item
    stages = max(2, min(6, gpu.shared_bytes_per_block // 2 // stage))
    return MatmulLaunch("tile", block_m, block_n, block_k, 4, stages)


def _choose_square(problem: MatmulProblem, gpu: GpuSpec) -> MatmulLaunch:
    """Many rows: the largest tile the registers hold."""
    if problem.dtype == torch.float32:
        return MatmulLaunch("tile", 64, 32, 32, 4, 2)
    use_tma = gpu.capability >= (9, 0) and problem.tma_ready
    block_k = 128 // problem.dtype.itemsize
    if gpu.capability[0] not in (9, 10):
        # Ampere and consumer Blackwell: 99 to 163 KiB of shared memory and no wgmma.
        return MatmulLaunch("tile", 128, 64 if problem.gated else 128, block_k, 8, 3, use_tma)
    block_m = 128 if problem.m > 64 else 64
    return MatmulLaunch("tile", block_m, 128 if problem.gated else 256, block_k, 8, 3, use_tma)
