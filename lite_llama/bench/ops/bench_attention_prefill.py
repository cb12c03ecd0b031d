"""attention_prefill: against both fused attentions torch ships."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from lite_llama.bench.harness import Case
from lite_llama.ops import attention_prefill

# (batch, query heads, KV heads, head_dim): lengths
_ON_GPU = {
    (8, 64, 64, 64): [2**i for i in (4, 6, 8, 10, 11, 12, 13, 14)],
    (4, 32, 32, 64): [2**i for i in (4, 6, 8, 10, 11, 12, 13, 14)],
    (1, 32, 8, 128): [2**i for i in (7, 9, 11, 12, 13, 14, 15)],
}
_ON_CPU = {(2, 4, 2, 64): [16, 64]}


def cases(device: torch.device, dtype: torch.dtype) -> list[Case]:
    sizes = _ON_GPU if device.type == "cuda" else _ON_CPU
    return [
        _case(device, dtype, size, length, causal=causal)
        for size, lengths in sizes.items()
        for length in lengths
        for causal in (True, False)
        # Exact float32 has no tensor cores: long sequences would only cost time.
        if dtype.itemsize == 2 or length <= 2048
    ]


def _case(
    device: torch.device,
    dtype: torch.dtype,
    size: tuple[int, int, int, int],
    length: int,
    *,
    causal: bool,
) -> Case:
    batch, num_q_heads, num_kv_heads, head_dim = size

    def make_inputs() -> tuple[Tensor, ...]:
        q, k, v = (
            torch.randn(batch * length, heads, head_dim, device=device, dtype=dtype)
            for heads in (num_q_heads, num_kv_heads, num_kv_heads)
        )
        # torch's attentions do not all share key heads: they get them repeated beforehand.
        repeated = (x.repeat_interleave(num_q_heads // num_kv_heads, dim=1) for x in (k, v))
        lengths = torch.full((batch,), length, dtype=torch.int32, device=device)
        bounds = torch.arange(batch + 1, dtype=torch.int32, device=device) * length
        return q, k, v, *repeated, bounds, lengths

    def ours(q: Tensor, k: Tensor, v: Tensor, *rest: Tensor) -> Tensor:
        *_, bounds, lengths = rest
        return attention_prefill(
            q, k, v, cu_seqlens_q=bounds, seq_lens=lengths, max_q_len=length, causal=causal
        )

    def torch_with(backend: SDPBackend) -> Callable[..., Tensor]:
        def attend(q: Tensor, _k: Tensor, _v: Tensor, *rest: Tensor) -> Tensor:
            queries, keys, values = (
                x.view(batch, length, num_q_heads, head_dim).transpose(1, 2) for x in (q, *rest[:2])
            )
            with sdpa_kernel([backend]):
                out = F.scaled_dot_product_attention(queries, keys, values, is_causal=causal)
            return out.transpose(1, 2).flatten(0, 1)

        return attend

    if device.type == "cpu" or dtype == torch.float32:
        contenders = {"torch": torch_with(SDPBackend.MATH)}
    else:
        contenders = {"cudnn": torch_with(SDPBackend.CUDNN_ATTENTION)}
        if length <= 4096:  # beyond, flash takes most of the run to say what it said before
            contenders["flash"] = torch_with(SDPBackend.FLASH_ATTENTION)
    num_tokens = batch * length
    pairs = length * (length + 1) // 2 if causal else length * length
    return Case(
        name=f"b{batch} h{num_q_heads}/{num_kv_heads} d{head_dim} n{length}"
        + (" causal" if causal else ""),
        dtype=dtype,
        make_inputs=make_inputs,
        contenders=contenders | {"lite_llama": ours},
        num_bytes=2 * num_tokens * (num_q_heads + num_kv_heads) * head_dim * dtype.itemsize,
        num_flops=4 * batch * num_q_heads * head_dim * pairs,
    )
