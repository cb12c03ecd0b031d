"""How a product with a weight matrix runs: which kernel, which tile. Pure, and free of Triton."""

from dataclasses import dataclass, replace
from typing import Literal

import torch

from lite_llama.kernel_lib.gpu import GpuSpec


@dataclass(frozen=True)
class MatmulProblem:
    """y [m, n] = x [m, k] wᵀ. `gated`: w holds n gate rows, then n up rows.

    `tma_ready`: base addresses and row strides of x and w are multiples of 16 bytes.
    `widens`: y is wanted in a wider dtype than the operands', without a rounding between.
    """

    m: int
    n: int
    k: int
    dtype: torch.dtype
    gated: bool = False
    tma_ready: bool = True
    widens: bool = False


@dataclass(frozen=True)
class MatmulLaunch:
    """`kind`: "vector" multiplies 1 or 2 rows, "tile" uses tensor cores, "cublas" calls torch."""

    kind: Literal["vector", "tile", "cublas"]
    block_m: int = 1
    block_n: int = 1
    block_k: int = 1
    num_warps: int = 4
    num_stages: int = 1
    use_tma: bool = False
    group_m: int = 8


CUBLAS = MatmulLaunch("cublas")
# Columns of a row all of whose tiles "vector" has on their way at once; longer ones take a loop.
SHORT_ROW = 2048
# From here on a few rows read the weight faster through our tiles than through cuBLAS.
_MANY_COLUMNS = 32768


def choose_launch(problem: MatmulProblem, gpu: GpuSpec) -> MatmulLaunch:
    """The fastest measured way, ours or cuBLAS (H200, torch 2.11, triton 3.6); pure.

    The numbers behind each choice stand in docs/lab/linear.md.
    """
    if problem.dtype.itemsize == 1:
        return _choose_fp8(problem, gpu)
    if problem.m == 1:
        return _choose_vector(problem)
    ours = problem.gated or problem.widens
    if problem.dtype == torch.float32:
        return _choose_exact(problem) if ours else CUBLAS
    if problem.m == 2 and problem.n <= 4096 and not ours:
        return _choose_two_rows(problem)
    if problem.m <= 64:
        if ours or problem.n >= _MANY_COLUMNS:
            return _choose_skinny(problem, gpu)
        return CUBLAS
    if ours:
        return _choose_wide(problem, gpu)
    # At most one tile an SM, and short: 512³ takes 3.3 µs, cuBLAS 3.7.
    few_tiles = _tiles(problem, 64) <= gpu.num_sms and problem.k <= 1024
    if few_tiles and _wgmma_from_tma(problem, gpu):
        return MatmulLaunch("tile", 64, 64, 128, 4, 4, use_tma=True)
    return CUBLAS


def _tiles(problem: MatmulProblem, side: int) -> int:
    """Square tiles that cover the result."""
    return -(-problem.m // side) * -(-problem.n // side)


def _wgmma_from_tma(problem: MatmulProblem, gpu: GpuSpec) -> bool:
    """Hopper's and data centre Blackwell's way: tensor maps and operands in shared memory."""
    return gpu.capability[0] in (9, 10) and problem.tma_ready


def _choose_vector(problem: MatmulProblem) -> MatmulLaunch:
    """One row: the weight streams through registers.

    One warp for 512 columns of a row is best to k = 2048, for two rows where there are many: of
    16384 x 2048 17.0 and 16.7 µs. Longer rows want more bytes in flight, but a weight that alone
    keeps the memory busy wants small programs (8B's down: 28.5 µs, above 30 with 4 warps).
    Of shorter rows a program takes more: 49152 x 576 took 31.5 µs with one, 15.8 with four, and
    15.2 with 32 of which no tile is padded.
    """
    if problem.k > SHORT_ROW:
        small = problem.n * problem.k <= 2**25
        return MatmulLaunch("vector", 1, 1, 2048, num_warps=4 if small else 2)
    if problem.n >= 16384:
        padded = problem.k < 1024 and problem.k % 512
        block_n, block_k = (32, 64) if padded else (2, 512)
        return MatmulLaunch("vector", 1, block_n, block_k, num_warps=1)
    if problem.k > 1024:
        return MatmulLaunch("vector", 1, 1, 512, num_warps=1)
    block_k = min(512, max(16, 1 << (problem.k - 1).bit_length()))
    return MatmulLaunch("vector", 1, 2, block_k, num_warps=1)


def _choose_two_rows(problem: MatmulProblem) -> MatmulLaunch:
    """Two rows of a small weight, both from one read: 2048×8192 takes 11.5 µs, cuBLAS 13.9.

    From 8192 outputs on (10.9 µs against 12.1) and from four rows on cuBLAS leads.
    """
    if problem.k <= SHORT_ROW:
        return replace(_choose_vector(problem), block_m=2)
    return MatmulLaunch("vector", 2, 2, 1024, num_warps=2)


def _choose_skinny(problem: MatmulProblem, gpu: GpuSpec) -> MatmulLaunch:
    """Few rows: one tile of 64 columns is within 2 % of the best for 2 to 64 rows."""
    block_m = max(16, 1 << (problem.m - 1).bit_length())
    block_n, block_k, item = 64, 128, problem.dtype.itemsize
    stage = (block_m + block_n * (2 if problem.gated else 1)) * block_k * item
    # Two programs an SM where three stages allow it.
    stages = max(3, min(4, gpu.shared_bytes_per_block // 2 // stage))
    stages = min(stages, gpu.shared_bytes_per_block // stage)
    use_tma = gpu.capability >= (9, 0) and problem.tma_ready
    return MatmulLaunch("tile", block_m, block_n, block_k, 4, stages, use_tma)


def _choose_wide(problem: MatmulProblem, gpu: GpuSpec) -> MatmulLaunch:
    """Many rows: the largest tile the registers hold, unless it leaves half of the SMs idle."""
    use_tma = gpu.capability >= (9, 0) and problem.tma_ready
    if gpu.capability[0] not in (9, 10):
        # Ampere and consumer Blackwell: 99 to 163 KiB of shared memory and no wgmma.
        return MatmulLaunch("tile", 128, 64 if problem.gated else 128, 64, 8, 3, use_tma)
    if 2 * _tiles(problem, 128) < gpu.num_sms:
        return MatmulLaunch("tile", 64, 64, 64, 4, 4, use_tma)
    return MatmulLaunch("tile", 128, 128, 64, 8, 4, use_tma)


def _choose_exact(problem: MatmulProblem) -> MatmulLaunch:
    """float32 without tf32: no tensor cores, a small tile keeps the operands in registers."""
    block_m = min(64, max(16, 1 << (problem.m - 1).bit_length()))
    return MatmulLaunch("tile", block_m, 32, 32, 4, 2)


def _choose_fp8(problem: MatmulProblem, gpu: GpuSpec) -> MatmulLaunch:
    """e4m3: cuBLAS where it leads (2048³ and up) and takes the shape."""
    if problem.m <= 64:
        block_m = max(16, 1 << (problem.m - 1).bit_length())
        stages = min(4, gpu.shared_bytes_per_block // ((block_m + 32) * 256))
        return MatmulLaunch("tile", block_m, 32, 256, 4, stages)
    use_tma = gpu.capability >= (9, 0) and problem.tma_ready
    if gpu.capability[0] not in (9, 10):
        return MatmulLaunch("tile", 128, 128, 64, 8, 3, use_tma)
    if _tiles(problem, 128) <= gpu.num_sms:
        return MatmulLaunch("tile", 64, 128, 128, 4, 4, use_tma)
    # _scaled_mm asks for 16-byte rows on every side.
    if problem.m * problem.n >= 2**22 and problem.tma_ready and problem.n % 16 == 0:
        return CUBLAS
    return MatmulLaunch("tile", 256, 128, 128, 8, 3, use_tma)
