"""New tokens' heads as a product leaves them: still to be normed, turned and cached."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from lite_llama.kernel_lib.checks import check, check_cache_write, check_same, check_shape


@dataclass(frozen=True)
class NewHeads:
    """Keys and values of each sequence's newest token, and what its queries lack, too.

    k and v float32 [num_seqs, num_kv_heads, head_dim], with the strides of the queries; q_norm and
    k_norm [head_dim], in the dtype of the caches; cos_sin float32 [max_positions, head_dim];
    positions and slot_mapping int64 [num_seqs], −1 where the length is 0. Query and key heads are
    normalised (rms_norm), then rotated; each step rounds as its own operator does.
    """

    k: Tensor
    v: Tensor
    q_norm: Tensor
    k_norm: Tensor
    eps: float
    cos_sin: Tensor
    positions: Tensor
    slot_mapping: Tensor


def check_new(new: NewHeads, q: Tensor, k_cache: Tensor, v_cache: Tensor) -> None:
    """Require that they belong to these queries and caches."""
    check_cache_write(len(q), k_cache, v_cache, new.cos_sin, new.positions, new.slot_mapping)
    shape = (len(q), *k_cache.shape[2:])
    for name, heads in (("new.k", new.k), ("new.v", new.v)):
        check_shape(name, heads, shape)
        check_same(name, heads, "q", q)
        check(
            heads.stride() == q.stride(),
            lambda name=name, heads=heads: (  # type: ignore[misc]
                f"{name} has strides {heads.stride()}, expected q's, {q.stride()}"
            ),
        )
    check(q.dtype == torch.float32, lambda: f"q is {q.dtype}, expected float32 beside new heads")
    for name, norm in (("new.q_norm", new.q_norm), ("new.k_norm", new.k_norm)):
        check_shape(name, norm, k_cache.shape[3:])
        check_same(name, norm, "k_cache", k_cache)


def admit(new: NewHeads, q: Tensor, k_cache: Tensor, v_cache: Tensor) -> Tensor:
    """Write the keys and values to their slots; the queries that attend to them. Plain torch."""
    cos, sin = new.cos_sin[new.positions].unsqueeze(1).chunk(2, dim=-1)

    def turned(x: Tensor, norm: Tensor) -> Tensor:
        x = F.rms_norm(x.float(), norm.shape, norm.float(), new.eps).to(norm.dtype).float()
        a, b = x.chunk(2, dim=-1)
        return torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1).to(norm.dtype)

    kept = new.slot_mapping >= 0
    slots = new.slot_mapping[kept]
    for cache, heads in ((k_cache, turned(new.k, new.k_norm)), (v_cache, new.v.to(v_cache.dtype))):
        blocks, rows = slots // cache.shape[1], slots % cache.shape[1]
        cache[blocks, rows] = heads[kept]
    return turned(q, new.q_norm)
