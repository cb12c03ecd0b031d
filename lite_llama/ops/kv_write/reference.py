"""kv_write in plain torch."""

import torch
from torch import Tensor


def kv_write(
    k: Tensor,
    v: Tensor,
    k_cache: Tensor,
    v_cache: Tensor,
    slot_mapping: Tensor,
    limit: float | None,
) -> None:
    slots = slot_mapping.tolist()
    if min(slots) < 0:
        kept = slot_mapping >= 0
        k, v, slot_mapping = k[kept], v[kept], slot_mapping[kept]
    for new, cache in ((k, k_cache), (v, v_cache)):
        if limit is not None:
            new = new.float().clamp(-limit, limit)
        rows = cache.view(-1, *cache.shape[2:])
        new = new.to(cache.dtype)
        if cache.element_size() == 1:  # index_copy_ does not know every fp8 type
            rows, new = rows.view(torch.uint8), new.view(torch.uint8)
        if len(slots) == len(new) == 1:  # one token: a third of index_copy_'s time
            rows[slots[0]] = new[0]
        else:
            rows.index_copy_(0, slot_mapping.long(), new)
