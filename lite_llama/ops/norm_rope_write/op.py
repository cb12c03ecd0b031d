"""Norms of query and key heads, rope, and the cache write, for a few tokens."""

import torch
from torch import Tensor

from lite_llama.kernel_lib.checks import (
    check,
    check_cache_write,
    check_rank,
    check_same,
    check_shape,
)
from lite_llama.ops.norm_rope_write import reference


def norm_rope_write(
    qkv: Tensor,
    q_norm: Tensor,
    k_norm: Tensor,
    eps: float,
    *,
    cos_sin: Tensor,
    positions: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    overlap: bool = False,
) -> Tensor:
    """Queries [M, num_q_heads, head_dim] of M tokens; their keys and values go to their slots.

    qkv float32 [M, (q + 2 kv) · head_dim], query, key and value heads in that order, as
    `norm_linear` returns them; q_norm and k_norm [head_dim], in the dtype of the result and of the
    caches. Query and key heads are normalised (rms_norm), then rotated; each step rounds as its own
    operator does. cos_sin float32 [max_positions, head_dim], positions int64 [M]; caches
    [num_blocks, block_size, num_kv_heads, head_dim], slot_mapping int64 [M] (−1: not written).
    `overlap` launches the kernel as a programmatic dependent where the GPU has that: it reads
    positions, slots and angles while the kernel before it still runs, which must not write them.
    """
    check_rank("qkv", qkv, 2)
    check(
        qkv.dtype == torch.float32 and qkv.is_contiguous(),
        lambda: f"qkv is {qkv.dtype} with strides {qkv.stride()}, expected float32, contiguous",
    )
    check_cache_write(len(qkv), k_cache, v_cache, cos_sin, positions, slot_mapping)
    num_kv_heads, head_dim = k_cache.shape[2:]
    check(
        qkv.shape[1] % head_dim == 0 and qkv.shape[1] > 2 * num_kv_heads * head_dim,
        lambda: f"qkv has {qkv.shape[1]} columns, expected (q + 2 · {num_kv_heads}) · {head_dim}",
    )
    for name, norm in (("q_norm", q_norm), ("k_norm", k_norm)):
        check_shape(name, norm, (head_dim,))
        check_same(name, norm, "k_cache", k_cache)
    if qkv.is_cuda:
        from lite_llama.ops.norm_rope_write import kernel

        return kernel.norm_rope_write(
            qkv, q_norm, k_norm, eps, cos_sin=cos_sin, positions=positions, k_cache=k_cache,
            v_cache=v_cache, slot_mapping=slot_mapping, overlap=overlap,
        )  # fmt: skip
    return reference.norm_rope_write(
        qkv, q_norm, k_norm, eps, cos_sin=cos_sin, positions=positions, k_cache=k_cache,
        v_cache=v_cache, slot_mapping=slot_mapping,
    )  # fmt: skip
