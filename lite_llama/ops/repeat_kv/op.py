"""Key or value heads repeated for the query heads that share them.

For study and tests: the engine's attention kernels read shared heads in place.
"""

import torch
from torch import Tensor

from lite_llama.kernel_lib.checks import check, check_rank
from lite_llama.ops.repeat_kv import reference


def repeat_kv(x: Tensor, q_per_kv: int) -> Tensor:
    """Repeat each head q_per_kv times: x [num_tokens, num_kv_heads, head_dim] ->
    [num_tokens, num_kv_heads · q_per_kv, head_dim], copies next to each other.
    """
    check_rank("x", x, 3)
    check(q_per_kv >= 1, lambda: f"q_per_kv is {q_per_kv}, expected at least 1")
    if x.numel() == 0:
        shape = (x.shape[0], x.shape[1] * q_per_kv, x.shape[2])
        return torch.empty(shape, dtype=x.dtype, device=x.device)
    if x.is_cuda:
        from lite_llama.ops.repeat_kv import kernel

        return kernel.repeat_kv(x, q_per_kv)
    return reference.repeat_kv(x, q_per_kv)
