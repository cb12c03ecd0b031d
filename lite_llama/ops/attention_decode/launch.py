"""How attention_decode splits and tiles its work."""

from dataclasses import dataclass

import torch

from lite_llama.kernel_lib.gpu import GpuSpec


@dataclass(frozen=True)
class Problem:
    """What the choice depends on. `max_kv_len`: tokens a row of the block table can hold.

    `in_chain`: in a chain of dependent launches, whose sums differ from other batches' anyway.
    """

    num_seqs: int
    num_kv_heads: int
    q_per_kv: int
    head_dim: int
    dtype: torch.dtype
    max_kv_len: int
    in_chain: bool = False


@dataclass(frozen=True)
class Launch:
    """A sequence is cut into at most `max_chunks` chunks of at least `min_chunk` keys.

    `programs_per_head` programs share the chunks of one sequence and KV head; `by_length`: a long
    sequence has more and a short one fewer, so many in the mean, unless there is one for every
    chunk. Each reads `block_n` keys at a time. In a chain there are no more chunks than programs,
    and `first_tiles` times as many keys are read at first, which need not be in shared memory.
    """

    max_chunks: int
    min_chunk: int
    programs_per_head: int
    block_n: int
    num_warps: int
    num_stages: int
    by_length: bool = False
    first_tiles: int = 1


def choose_launch(problem: Problem, gpu: GpuSpec) -> Launch:
    """The split for this problem on this GPU; pure. Measured: docs/lab/attention_decode.md.

    Where a sequence is cut depends on its own length and on model and GPU alone, never on the
    batch: so a sequence's result is the same, bit by bit, whatever runs beside it. The batch
    decides only how many programs share the chunks.
    """
    num_pairs = problem.num_seqs * problem.num_kv_heads
    if problem.in_chain:
        return _choose_in_chain(problem, gpu.num_sms / num_pairs)
    # One sequence wants many chunks, a batch few, and it may not ask which. Of 8192
    # keys, 32 chunks take 10 to 16 % less time than 16 alone, 3 to 6 % more in batches of 8 and 64;
    # 512 keys a chunk would make them 16. Of 1024 keys in a batch of 256, chunks of 256 keys take
    # 4 to 7 % less than chunks of 128.
    min_chunk = 256
    # About two programs an SM when one sequence runs alone; 32 chunks combine in one go.
    wanted = min(128, max(1, 2 * gpu.num_sms // problem.num_kv_heads))
    wanted = wanted // 32 * 32 or wanted
    max_chunks = max(1, min(wanted, -(-problem.max_kv_len // min_chunk)))
    # As many programs as run at once, a power of two so that each has as many whole groups or
    # blocks of chunks; more would end one's stream of loads for the next.
    programs = min(max_chunks, _power_of_two_below(4 * gpu.num_sms / num_pairs))
    block_n, num_stages = 32, 3
    if problem.dtype != torch.float32:
        # The tiles that leave least of the memory's time unused in batches of 8 and 64.
        block_n = 32 if problem.head_dim > 64 else 64
        # With two programs an SM, as for one sequence, 3 stages load too little: 7 to 25 %.
        num_stages = 5 if num_pairs * programs <= 2 * gpu.num_sms else 3
    return Launch(
        max_chunks, min_chunk, programs, block_n, num_warps=4, num_stages=num_stages,
        by_length=problem.num_seqs > 1,
    )  # fmt: skip


def _choose_in_chain(problem: Problem, sms: float) -> Launch:
    """For a step in a chain, `sms` to each sequence and KV head."""
    few = problem.num_seqs <= 4
    narrow = problem.head_dim * problem.dtype.itemsize <= 128  # registers hold keys by the 128
    # Of 8 and 16 sequences of Llama-3.2-1B a step with chunks of 256 keys takes 0.5 to 4 % longer.
    min_chunk = 64 if few and not narrow else 128
    # Two programs an SM: four of one sequence take 5 % longer at 32768 keys, of two 9 to 15 %.
    programs = _power_of_two_below(2 * sms) if few else max(8, _power_of_two_below(4 * sms))
    programs = max(1, min(programs, 128, -(-problem.max_kv_len // min_chunk)))
    split = (programs, min_chunk, programs)
    if few and narrow:
        # A step of Llama-3.2-1B takes 0.8 % longer at 140 keys than with first tiles of 64 and 3
        # stages, and 3, 9 and 16 % less at 2048, 32768 and 131000: more is on its way.
        return Launch(*split, 64, num_warps=4, num_stages=5, first_tiles=2)
    if few:
        # One of Qwen3-0.6B 0.568 ms, and 0.604 with tiles of 128: what counts is how little code
        # runs after the wait.
        return Launch(*split, 64, num_warps=4, num_stages=3)
    if narrow:
        # Of 8 sequences of Llama-3.2-1B 1.5 to 2 % of a step over tiles of 128 and twice the
        # programs at 140, 2048 and 16384 keys, of 16 sequences 2.8 % at 140.
        return Launch(*split, 64, num_warps=2, num_stages=5, first_tiles=2)
    return Launch(*split, 64, num_warps=4, num_stages=2)


def _power_of_two_below(number: float) -> int:
    """The greatest power of two that is not above it; at least 1."""
    return 1 << max(1, int(number)).bit_length() >> 1
