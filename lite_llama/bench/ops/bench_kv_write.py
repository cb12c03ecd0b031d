"""kv_write: a read and a write an element of k and v."""

import torch
from torch import Tensor

from lite_llama.bench.harness import Case
from lite_llama.ops import kv_write

_BLOCK_SIZE = 16


def cases(device: torch.device, dtype: torch.dtype) -> list[Case]:
    problems = [(16, 2, 8), (1, 8, 64), (64, 8, 128), (4096, 8, 128)]
    if device.type != "cuda":
        problems = problems[:2]
    return [_case(device, dtype, *problem) for problem in problems]


def _case(device: torch.device, dtype: torch.dtype, tokens: int, heads: int, head_dim: int) -> Case:
    num_blocks = 2 * tokens // _BLOCK_SIZE + 1

    def make_inputs() -> tuple[Tensor, ...]:
        k, v = (torch.randn(tokens, heads, head_dim, device=device, dtype=dtype) for _ in "kv")
        shape = (num_blocks, _BLOCK_SIZE, heads, head_dim)
        caches = (torch.zeros(shape, device=device, dtype=dtype) for _ in "kv")
        slots = torch.randperm(num_blocks * _BLOCK_SIZE, device=device)[:tokens]
        return k, v, *caches, slots

    def plain(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slots: Tensor) -> None:
        k_cache.view(-1, heads, head_dim).index_copy_(0, slots, k)
        v_cache.view(-1, heads, head_dim).index_copy_(0, slots, v)

    return Case(
        name=f"{tokens} tokens {heads}x{head_dim}",
        dtype=dtype,
        make_inputs=make_inputs,
        contenders={"torch": plain, "lite_llama": kv_write},
        num_bytes=4 * tokens * heads * head_dim * dtype.itemsize,
        copies=True,
        limit=0.0,
        in_place=True,
    )
