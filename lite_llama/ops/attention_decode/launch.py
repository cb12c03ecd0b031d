"""How attention_decode splits and tiles its work."""

from dataclasses import dataclass

import torch

from lite_llama.kernel_lib.gpu import GpuSpec


@dataclass(frozen=True)
class Problem:
    """What the choice depends on. `max_kv_len`: tokens a row of the block table can hold."""

    num_seqs: int
    num_kv_heads: int
    q_per_kv: int
    head_dim: int
    dtype: torch.dtype
    max_kv_len: int


@dataclass(frozen=True)
class Launch:
    """A sequence is cut into at most `max_chunks` chunks of at least `min_chunk` keys.

    `programs_per_head` programs share the chunks of one sequence and KV head; each reads
    `block_n` keys at a time.
    """

    max_chunks: int
    min_chunk: int
    programs_per_head: int
    block_n: int
    num_warps: int
    num_stages: int


def choose_launch(problem: Problem, gpu: GpuSpec) -> Launch:
    """The split for this problem on this GPU; pure.

    Where a sequence is cut depends on its own length and on model and GPU alone, never on the
    batch: so a sequence's result is the same, bit by bit, whatever runs beside it. The batch
    decides only how many programs share the chunks.
    """
    min_chunk = 128
    # About two programs an SM when one sequence runs alone; 32 chunks combine in one go.
    wanted = min(128, max(1, 2 * gpu.num_sms // problem.num_kv_heads))
    wanted = wanted // 32 * 32 or wanted
    max_chunks = max(1, min(wanted, -(-problem.max_kv_len // min_chunk)))
    # Enough programs to fill the GPU several times; more would only start and exit.
    heads = problem.num_seqs * problem.num_kv_heads
    programs = max(1, min(max_chunks, -(-16 * gpu.num_sms // heads)))
    # Few programs must each keep much in flight: of 9 stages, 4 hold keys and values, the others
    # the block numbers they wait for. Many leave room for each other.
    many = heads * programs > 2 * gpu.num_sms
    num_stages = 3 if many or problem.dtype == torch.float32 else 9
    if problem.dtype == torch.float32 or problem.head_dim > 64:
        return Launch(max_chunks, min_chunk, programs, 32, num_warps=4, num_stages=num_stages)
    return Launch(max_chunks, min_chunk, programs, 64, num_warps=2, num_stages=num_stages)
