import pytest
import torch
from torch import Tensor

from lite_llama.errors import OperatorError
from lite_llama.ops import bias_rope_pad, unpad
from lite_llama.ops.bias_rope_pad import kernel, reference
from tests.ops.compare import (
    DTYPES,
    assert_close_to_reference,
    non_contiguous,
    poison_new_outputs,
    random,
    same_bits,
)
from tests.ops.tolerances import ROWWISE


def _table(max_positions: int, head_dim: int, device: torch.device) -> Tensor:
    frequencies = 10000.0 ** (-torch.arange(0, head_dim, 2) / head_dim)
    angles = torch.arange(max_positions)[:, None] * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=-1).to(device)


def _offsets(lengths: list[int], device: torch.device) -> Tensor:
    return torch.tensor([0, *lengths], device=device).cumsum(0).to(torch.int32)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("lengths", "seq", "q_heads", "kv_heads", "head_dim"),
    [([3, 1, 5], 5, 4, 2, 8), ([1], 2, 9, 3, 64), ([0, 2], 3, 7, 1, 80)],
)
def test_ragged_sequences_become_padded_rotated_heads(
    device: torch.device,
    dtype: torch.dtype,
    lengths: list[int],
    seq: int,
    q_heads: int,
    kv_heads: int,
    head_dim: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    columns = (q_heads + 2 * kv_heads) * head_dim
    qkv = random(sum(lengths), columns, dtype=dtype, device=device)
    bias = random(columns, dtype=dtype, device=device)
    arguments = (_table(seq, head_dim, device), _offsets(lengths, device), seq, q_heads)
    want = reference.bias_rope_pad(qkv.double().float(), bias.float(), *arguments)
    poison_new_outputs(monkeypatch)
    got = kernel.bias_rope_pad(qkv, bias, *arguments)
    strided = kernel.bias_rope_pad(non_contiguous(qkv), bias, *arguments)
    for i, heads in enumerate((q_heads, kv_heads, kv_heads)):
        assert got[i].shape == (len(lengths), heads, seq, head_dim)
        assert_close_to_reference(got[i], want[i].double(), ROWWISE)
        assert same_bits(strided[i], got[i])
        for sequence, length in enumerate(lengths):
            assert not got[i][sequence, :, length:].any(), "padding must be zero"


def test_values_only_get_the_bias(device: torch.device) -> None:
    qkv = random(2, 3 * 8, dtype=torch.float32, device=device)
    bias = random(24, dtype=torch.float32, device=device)
    _, _, v = kernel.bias_rope_pad(qkv, bias, _table(2, 8, device), _offsets([2], device), 2, 1)
    assert same_bits(v[0, 0], (qkv + bias)[:, 16:])


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("lengths", [[3, 1, 5], [5], [0, 2, 0]])
def test_unpad_returns_the_tokens_bit_for_bit(
    device: torch.device,
    dtype: torch.dtype,
    lengths: list[int],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = random(len(lengths), 3, 5, 80, dtype=dtype, device=device)
    rows = [x[i, :, :n].transpose(0, 1).reshape(n, 240) for i, n in enumerate(lengths)]
    poison_new_outputs(monkeypatch)
    got = kernel.unpad(x, _offsets(lengths, device), sum(lengths))
    assert same_bits(got, torch.cat(rows))
    turned = x.transpose(1, 2).contiguous().transpose(1, 2)
    assert same_bits(kernel.unpad(turned, _offsets(lengths, device), sum(lengths)), got)


def test_no_tokens_and_calls_against_the_contract(device: torch.device) -> None:
    qkv, bias = torch.zeros(2, 24, device=device), torch.zeros(24, device=device)
    table, offsets = _table(2, 8, device), _offsets([2], device)
    q, k, v = bias_rope_pad(qkv[:0], bias, table, offsets[:1], 2, 1)
    assert q.shape == k.shape == v.shape == (0, 1, 2, 8)
    assert unpad(torch.zeros(1, 2, 3, 4, device=device), _offsets([0], device), 0).shape == (0, 8)
    with pytest.raises(OperatorError, match=r"bias has shape \(8,\)"):
        bias_rope_pad(qkv, bias[:8], table, offsets, 2, 1)
    with pytest.raises(OperatorError, match=r"expected float32 \[>= 3, even head_dim\]"):
        bias_rope_pad(qkv, bias, table, offsets, 3, 1)
    with pytest.raises(OperatorError, match="qkv has 24 columns"):
        bias_rope_pad(qkv, bias, table, offsets, 2, 2)
    with pytest.raises(OperatorError, match=r"cu_seqlens has shape \(2,\), expected \(3,\)"):
        unpad(torch.zeros(2, 2, 3, 4, device=device), offsets, 2)
