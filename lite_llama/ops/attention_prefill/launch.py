"""Which kernel attention_prefill runs with, and which tile."""

from dataclasses import dataclass

import torch

from lite_llama.kernel_lib.gpu import GpuSpec

# Queries and keys of a tile of `hopper.py`.
HOPPER_QUERIES, HOPPER_KEYS = 128, 128


@dataclass(frozen=True)
class Problem:
    """What the choice depends on. `block_size` 0: dense keys and values.

    `tma_ready`: K and V are as a tensor map asks; `heads_ready`: and q, and the heads of a row lie
    side by side. `is_plain`: no window, no sinks.
    """

    num_seqs: int
    max_q_len: int
    num_q_heads: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    block_size: int
    causal: bool
    tma_ready: bool
    heads_ready: bool
    is_plain: bool


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


def runs_on_hopper(problem: Problem, gpu: GpuSpec) -> bool:
    """Whether the kernel of `hopper.py` takes this problem; pure.

    It wins from 65 queries on where keys are paged, and where they are not once there are more
    tiles than SMs. With head_dim 64 and no causal mask it loses.
    """
    block = problem.block_size
    in_pieces = block >= 16 and 0 in (HOPPER_KEYS % block, block % HOPPER_KEYS)
    num_tiles = -(-problem.max_q_len // HOPPER_QUERIES) * problem.num_seqs * problem.num_q_heads
    return (
        gpu.capability[0] == 9
        and gpu.compiles
        and problem.dtype in (torch.float16, torch.bfloat16)
        and (problem.head_dim == 128 or (problem.head_dim == 64 and problem.causal))
        and problem.max_q_len > 64
        and (in_pieces or (block == 0 and num_tiles > gpu.num_sms))
        and problem.is_plain
        and problem.heads_ready
    )


def choose_launch(problem: Problem, gpu: GpuSpec) -> Launch:
    """The tile of `kernel.py` for this problem on this GPU; pure.

    Hopper's tiles are the fastest of those measured on an H200: docs/lab/attention_prefill.md.
    """
    section = _heads_per_section(problem, gpu)
    if problem.dtype == torch.float32:
        # No tensor cores in exact float32: a small tile keeps the operands in registers.
        return Launch(32, 32, 4, 2, section)
    block_m, block_n, num_warps, num_stages = _tile(problem, gpu)
    block_m = 64 if problem.max_q_len <= 64 else block_m
    row_bytes = max(16, problem.head_dim) * problem.dtype.itemsize
    fitting = (gpu.shared_bytes_per_block // row_bytes - block_m) // (2 * block_n)
    return Launch(
        block_m,
        block_n,
        num_warps if block_m == 128 else 4,
        max(1, min(num_stages, fitting)),
        section,
        _use_tma(problem, gpu, block_n),
    )


def _tile(problem: Problem, gpu: GpuSpec) -> tuple[int, int, int, int]:
    """(queries, keys, warps, stages)."""
    if gpu.capability[0] not in (9, 10):
        # Where there is no wgmma, operands lie in registers.
        return 128, 64 if problem.head_dim <= 64 else 32, 8, 3
    if not _use_tma(problem, gpu, 64):
        # Pointers take registers: more warps share them.
        if problem.max_q_len <= 64:
            return 64, 64, 4, 3
        return (128, 64, 8, 3) if problem.head_dim <= 64 else (128, 128, 8, 2)
    if problem.head_dim > 64:
        # Dense: two programs an SM, one multiplies while the other exponentiates. Block by block,
        # more queries share what a load's address costs: 462 against 377 TFLOP/s.
        return (128 if problem.block_size else 64), 64, 4, 3
    # Several programs an SM; on the diagonal, a narrow tile computes less in vain.
    return (64, 64, 4, 3) if problem.causal else (64, 128, 4, 2)


def _use_tma(problem: Problem, gpu: GpuSpec, block_n: int) -> bool:
    fits_a_block = problem.block_size % block_n == 0
    return gpu.capability >= (9, 0) and problem.tma_ready and fits_a_block


def _heads_per_section(problem: Problem, gpu: GpuSpec) -> int:
    """As many KV heads' query heads as have their keys and values in half of the L2 cache.

    Longest query blocks first over many heads levels the load, over few heads it keeps K and V
    in the cache: at 4096 keys all heads are 5 % faster than one, at 16384 four are.
    """
    row_bytes = 2 * problem.head_dim * problem.dtype.itemsize
    fitting = gpu.l2_bytes // 2 // max(1, problem.max_q_len * row_bytes)
    together = max(
        n for n in range(1, problem.num_kv_heads + 1)
        if problem.num_kv_heads % n == 0 and n <= max(1, fitting)
    )  # fmt: skip
    return together * (problem.num_q_heads // problem.num_kv_heads)
