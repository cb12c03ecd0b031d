"""Append the keys and values of new tokens to their cache slots."""

import torch
from torch import Tensor

from lite_llama.errors import OperatorError
from lite_llama.kernel_lib.checks import (
    check,
    check_device,
    check_float,
    check_float_up_to_32,
    check_integer,
    check_rank,
    check_same,
    check_shape,
)
from lite_llama.ops.kv_write import reference

_FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def kv_write(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor) -> None:
    """Store k and v [num_tokens, num_kv_heads, head_dim] in the paged caches, in place.

    k_cache and v_cache [num_blocks, block_size, num_kv_heads, head_dim], contiguous, of one
    floating dtype; token i goes to slot slot_mapping[i] = block · block_size + offset; −1 marks
    padding, which is not written. Values are converted to the cache's dtype; fp8 saturates.
    Slots must lie in the cache and differ; they are not checked on the device.
    """
    check_rank("k", k, 3)
    check_rank("k_cache", k_cache, 4)
    check_shape("v", v, tuple(k.shape))
    check_shape("v_cache", v_cache, tuple(k_cache.shape))
    check(
        k_cache.shape[2:] == k.shape[1:],
        lambda: (
            f"k_cache has shape {tuple(k_cache.shape)}, "
            f"expected [.., .., {k.shape[1]}, {k.shape[2]}]"
        ),
    )
    check_integer("slot_mapping", slot_mapping)
    check_shape("slot_mapping", slot_mapping, (k.shape[0],))
    check_float_up_to_32("k", k)
    check_same("v", v, "k", k)
    _check_cache(k_cache, v_cache)
    for name, x in (("k_cache", k_cache), ("slot_mapping", slot_mapping)):
        check_device(name, x, "k", k)
    if k.numel() == 0:
        return
    limit = torch.finfo(k_cache.dtype).max if k_cache.dtype in _FP8 else None
    if k.is_cuda:
        from lite_llama.ops.kv_write import kernel

        kernel.kv_write(k, v, k_cache, v_cache, slot_mapping, limit)
        return
    reference.kv_write(k, v, k_cache, v_cache, slot_mapping, limit)


def _check_cache(k_cache: Tensor, v_cache: Tensor) -> None:
    check_same("v_cache", v_cache, "k_cache", k_cache)
    for name, x in (("k_cache", k_cache), ("v_cache", v_cache)):
        check_float(name, x)
        if not x.is_contiguous():
            raise OperatorError(f"{name} has strides {x.stride()}, expected a contiguous cache")
