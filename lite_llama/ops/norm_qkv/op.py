"""RMS norm, query, key and value projections, rope and the cache write, for a few tokens."""

from torch import Tensor

from lite_llama.kernel_lib.checks import (
    check,
    check_cache_write,
    check_few_rows_of,
    check_same,
    check_shape,
)
from lite_llama.kernel_lib.gemv_launch import GemvLaunch
from lite_llama.ops.norm_qkv import reference


def norm_qkv(
    x: Tensor,
    norm: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    eps: float,
    *,
    cos_sin: Tensor,
    positions: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    launch: GemvLaunch | None = None,
) -> Tensor:
    """Queries [M, num_q_heads, head_dim] of M tokens; their keys and values go to their slots.

    x [M, hidden], M at most 8, norm [hidden], weight [(q + 2 kv) · head_dim, hidden] with query,
    key and value rows in that order, bias of as many elements or None. cos_sin float32
    [max_positions, head_dim], positions int64 [M]; caches
    [num_blocks, block_size, num_kv_heads, head_dim], slot_mapping int64 [M] (−1: not written).
    Norm, product and rope round as the separate operators do. `launch` as in `linear_add`; what may
    be read before the kernel before it has ended includes positions, slots and angles.
    """
    check_few_rows_of("x", x, "weight", weight)
    check_shape("norm", norm, (x.shape[1],))
    check_same("norm", norm, "x", x)
    check_cache_write(len(x), k_cache, v_cache, cos_sin, positions, slot_mapping)
    num_kv_heads, head_dim = k_cache.shape[2:]
    check(
        weight.shape[0] % head_dim == 0 and weight.shape[0] > 2 * num_kv_heads * head_dim,
        lambda: (
            f"weight has {weight.shape[0]} rows, expected (q + 2 · {num_kv_heads}) · {head_dim}"
        ),
    )
    if bias is not None:
        check_shape("bias", bias, (weight.shape[0],))
        check_same("bias", bias, "x", x)
    if x.is_cuda:
        from lite_llama.ops.norm_qkv import kernel

        return kernel.norm_qkv(
            x, norm, weight, bias, eps, cos_sin=cos_sin, positions=positions, k_cache=k_cache,
            v_cache=v_cache, slot_mapping=slot_mapping, launch=launch,
        )  # fmt: skip
    return reference.norm_qkv(
        x, norm, weight, bias, eps, cos_sin=cos_sin, positions=positions, k_cache=k_cache,
        v_cache=v_cache, slot_mapping=slot_mapping,
    )  # fmt: skip
