"""Keys and values of all layers, in blocks of tokens."""

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class LayerCache:
    """One layer's `k` and `v` [num_blocks, block_size, num_kv_heads, head_dim]."""

    k: Tensor
    v: Tensor


@dataclass(frozen=True)
class KVCache:
    """The paged cache; `layers[i]` are views on one allocation."""

    layers: tuple[LayerCache, ...]

    @staticmethod
    def allocate(
        shape: tuple[int, int, int, int, int], dtype: torch.dtype, device: torch.device
    ) -> "KVCache":
        """Allocate for `shape` = (num_layers, num_blocks, block_size, num_kv_heads, head_dim).

        The memory is not initialised: on the CPU the system hands out its pages when they are
        first written, so a cache that is never filled costs nothing.
        """
        store = torch.empty((shape[0], 2, *shape[1:]), dtype=dtype, device=device)
        return KVCache(tuple(LayerCache(layer[0], layer[1]) for layer in store))
