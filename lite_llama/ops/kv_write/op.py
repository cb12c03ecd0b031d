"""Append the keys and values of new tokens to their cache slots."""

from torch import Tensor

from lite_llama.kernel_lib.checks import check, check_integer, check_rank, check_shape
from lite_llama.ops.kv_write import reference


def kv_write(k: Tensor, v: Tensor, k_cache: Tensor, v_cache: Tensor, slot_mapping: Tensor) -> None:
    """Store k and v [num_tokens, num_kv_heads, head_dim] in the paged caches, in place.

    k_cache and v_cache [num_blocks, block_size, num_kv_heads, head_dim]; token i goes to slot
    slot_mapping[i] = block · block_size + offset; −1 marks padding, which is not written.
    Values are converted to the cache's dtype.
    """
    check_rank("k", k, 3)
    check_rank("k_cache", k_cache, 4)
    check_shape("v", v, tuple(k.shape))
    check_shape("v_cache", v_cache, tuple(k_cache.shape))
    check(
        k_cache.shape[2:] == k.shape[1:],
        f"k_cache has shape {tuple(k_cache.shape)}, expected [.., .., {k.shape[1]}, {k.shape[2]}]",
    )
    check_integer("slot_mapping", slot_mapping)
    check_shape("slot_mapping", slot_mapping, (k.shape[0],))
    reference.kv_write(k, v, k_cache, v_cache, slot_mapping)
