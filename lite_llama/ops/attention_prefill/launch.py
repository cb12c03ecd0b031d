"""Which tile attention_prefill runs with."""

from dataclasses import dataclass

import torch

from lite_llama.kernel_lib.gpu import GpuSpec


@dataclass(frozen=True)
class Problem:
    """What the choice depends on. `block_size` 0: dense keys and values."""

    num_seqs: int
    max_q_len: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    block_size: int
    causal: bool
    tma_ready: bool


@dataclass(frozen=True)
class Launch:
    """A program owns `block_m` queries and reads `block_n` keys at a time.

    `heads_per_section` heads run together, longest query blocks first.
    """

    block_m: int
    block_n: int
    num_warps: int
    num_stages: int
    heads_per_section: int
    use_tma: bool = False


def choose_launch(problem: Problem, gpu: GpuSpec) -> Launch:
    """The tile for this problem on this GPU; pure."""
    q_per_kv = problem.num_q_heads // problem.num_kv_heads
    if problem.dtype == torch.float32:
        # No tensor cores in exact float32: a small tile keeps the operands in registers.
        return Launch(32, 32, 4, 2, q_per_kv)
    block_m = 64 if problem.max_q_len <= 64 else 128
    # Where there is no wgmma, operands lie in registers too.
    has_wgmma_or_better = gpu.capability[0] in (9, 10)
    block_n = 64 if problem.head_dim <= 64 or has_wgmma_or_better else 32
    wide = problem.head_dim > 64 or not has_wgmma_or_better
    num_warps = 8 if wide and block_m == 128 else 4
    fits_a_block = problem.block_size == 0 or problem.block_size % block_n == 0
    use_tma = gpu.capability >= (9, 0) and problem.tma_ready and fits_a_block
    row_bytes = max(16, problem.head_dim) * problem.dtype.itemsize
    stages = (gpu.shared_bytes_per_block // row_bytes - block_m) // (2 * block_n)
    return Launch(block_m, block_n, num_warps, max(1, min(3, stages)), q_per_kv, use_tma)
