"""bias_rope_pad and unpad: a read of every token, a write of every padded slot; and back."""

import torch
from torch import Tensor

from lite_llama.bench.harness import Case
from lite_llama.ops import bias_rope_pad, unpad

_Q_HEADS, _KV_HEADS, _HEAD_DIM = 32, 8, 128
_HEADS = _Q_HEADS + 2 * _KV_HEADS


def cases(device: torch.device, dtype: torch.dtype) -> list[Case]:
    batch, seq = (16, 256) if device.type == "cuda" else (2, 8)
    lengths = torch.linspace(1, seq, batch).int()
    offsets = torch.cat((torch.zeros(1, dtype=torch.int32), lengths.cumsum(0).int())).to(device)
    tokens = int(lengths.sum())
    # Which token each padded slot holds; padding reads token 0 and is masked.
    position = torch.arange(seq)
    inside = (position < lengths[:, None]).to(device)
    source = torch.where(position < lengths[:, None], position + offsets[:-1, None].cpu(), 0)
    ragged = (offsets, source.to(device), inside, tokens, seq)
    return [_pad_case(device, dtype, *ragged), _unpad_case(device, dtype, *ragged)]


def _pad_case(
    device: torch.device,
    dtype: torch.dtype,
    offsets: Tensor,
    source: Tensor,
    inside: Tensor,
    tokens: int,
    seq: int,
) -> Case:
    angles = torch.rand(seq, _HEAD_DIM // 2, device=device) * 6
    cos_sin = torch.cat((angles.cos(), angles.sin()), dim=-1)
    cos, sin = (part.repeat(1, 2).to(dtype) for part in cos_sin.chunk(2, dim=-1))

    def make_inputs() -> tuple[Tensor, Tensor]:
        columns = _HEADS * _HEAD_DIM
        qkv = torch.randn(tokens, columns, device=device, dtype=dtype)
        return qkv, torch.randn(columns, device=device, dtype=dtype)

    def plain(qkv: Tensor, bias: Tensor) -> tuple[Tensor, ...]:
        rows = (qkv + bias)[source] * inside[..., None]
        heads = rows.view(*source.shape, _HEADS, _HEAD_DIM).transpose(1, 2)
        q, k, v = torch.split(heads, [_Q_HEADS, _KV_HEADS, _KV_HEADS], dim=1)
        return _turn(q, cos, sin), _turn(k, cos, sin), v.contiguous()

    padded = source.numel()
    return Case(
        name=f"pad {tokens} tokens to {source.shape[0]}x{seq}",
        dtype=dtype,
        make_inputs=make_inputs,
        contenders={
            "torch": plain,
            "lite_llama": lambda qkv, bias: bias_rope_pad(
                qkv, bias, cos_sin, offsets, seq, _Q_HEADS
            ),
        },
        num_bytes=(tokens + padded) * _HEADS * _HEAD_DIM * dtype.itemsize,
        copies=True,
        compile_torch=True,
    )


def _unpad_case(
    device: torch.device,
    dtype: torch.dtype,
    offsets: Tensor,
    source: Tensor,
    inside: Tensor,
    tokens: int,
    seq: int,
) -> Case:
    batch = source.shape[0]
    # The padded slot of every token.
    slots = torch.arange(batch * seq, device=device)[inside.flatten()]

    def make_inputs() -> tuple[Tensor]:
        return (torch.randn(batch, _Q_HEADS, seq, _HEAD_DIM, device=device, dtype=dtype),)

    return Case(
        name=f"unpad {tokens} tokens of {batch}x{seq}",
        dtype=dtype,
        make_inputs=make_inputs,
        contenders={
            "torch": lambda x: x.transpose(1, 2).reshape(batch * seq, -1)[slots],
            "lite_llama": lambda x: unpad(x, offsets, tokens),
        },
        num_bytes=2 * tokens * _Q_HEADS * _HEAD_DIM * dtype.itemsize,
        copies=True,
        compile_torch=True,
        limit=0.0,
    )


def _turn(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    a, b = x.chunk(2, dim=-1)
    return x * cos + torch.cat((-b, a), dim=-1) * sin
