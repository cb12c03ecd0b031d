"""The layers of the cache are parts of one allocation, and apart from each other."""

import torch

from lite_llama.cache.kv_cache import KVCache


def test_layers_are_disjoint_views_on_one_allocation() -> None:
    cache = KVCache.allocate((3, 5, 4, 2, 8), torch.float16, torch.device("cpu"))
    tensors = [tensor for layer in cache.layers for tensor in (layer.k, layer.v)]
    assert len(tensors) == 6
    for value, tensor in enumerate(tensors):
        assert tensor.shape == (5, 4, 2, 8)
        assert tensor.dtype == torch.float16
        assert tensor.is_contiguous()
        tensor.fill_(value)
    for value, tensor in enumerate(tensors):
        assert bool((tensor == value).all())
    assert len({tensor.untyped_storage().data_ptr() for tensor in tensors}) == 1
