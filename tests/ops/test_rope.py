import pytest
import torch
from torch import Tensor

from lite_llama.errors import OperatorError
from lite_llama.ops import rope
from lite_llama.ops.rope import kernel, reference
from lite_llama.ops.rope.launch import RopeLaunch, choose_launch
from tests.ops.compare import DTYPES, assert_close_to_reference, poison, random, same_bits
from tests.ops.tolerances import ROWWISE


def _table(max_positions: int, rotary_dim: int, device: torch.device) -> Tensor:
    frequencies = 10000.0 ** (-torch.arange(0, rotary_dim, 2, dtype=torch.float64) / rotary_dim)
    angles = torch.arange(max_positions, dtype=torch.float64)[:, None] * frequencies
    return torch.cat((angles.cos(), angles.sin()), dim=-1).to(device, torch.float32)


def _exact(x: Tensor, cos_sin: Tensor, positions: Tensor) -> Tensor:
    cos, sin = cos_sin[positions.long()].double()[:, None].chunk(2, dim=-1)
    rotary = cos_sin.shape[1]
    a, b = x[..., :rotary].double().chunk(2, dim=-1)
    turned = torch.cat((a * cos - b * sin, b * cos + a * sin), dim=-1)
    return torch.cat((turned, x[..., rotary:].double()), dim=-1)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("num_tokens", "q_heads", "kv_heads", "head_dim", "rotary_dim"),
    [
        (2, 1, 1, 4, 4),
        (3, 9, 3, 64, 64),
        (2, 4, 4, 4096, 4096),
        (2, 7, 1, 80, 80),
        (3, 8, 2, 96, 48),
    ],
)
def test_kernel_rotates_q_and_k_in_place(
    device: torch.device,
    dtype: torch.dtype,
    num_tokens: int,
    q_heads: int,
    kv_heads: int,
    head_dim: int,
    rotary_dim: int,
) -> None:
    q = random(num_tokens, q_heads, head_dim, dtype=dtype, device=device)
    k = random(num_tokens, kv_heads, head_dim, dtype=dtype, device=device)
    cos_sin = _table(1024, rotary_dim, device)
    positions = torch.tensor([1023, 0, 512][:num_tokens], device=device)
    want = [_exact(x, cos_sin, positions) for x in (q, k)]
    plain_q, plain_k = q.clone(), k.clone()
    reference.rope(plain_q, plain_k, cos_sin, positions)
    kernel.rope(q, k, cos_sin, positions)
    assert_close_to_reference(q, want[0], ROWWISE, plain_q)
    assert_close_to_reference(k, want[1], ROWWISE, plain_k)


def test_slices_of_a_fused_buffer_are_rotated_and_the_rest_is_untouched(
    device: torch.device,
) -> None:
    fused = random(2, (4 + 2 * 2) * 64, dtype=torch.bfloat16, device=device)
    before = fused.clone()
    q, k = (fused[:, a:b].unflatten(1, (-1, 64)) for a, b in ((0, 256), (256, 384)))
    cos_sin = _table(8, 32, device)
    positions = torch.tensor([5, 7], dtype=torch.int32, device=device)
    kernel.rope(q, k, cos_sin, positions)
    assert same_bits(fused[:, 384:], before[:, 384:])
    assert same_bits(q[..., 32:], before[:, :256].unflatten(1, (-1, 64))[..., 32:])
    want = _exact(before[:, :256].unflatten(1, (-1, 64)), cos_sin, positions)
    assert_close_to_reference(q, want, ROWWISE)


def test_a_token_is_rotated_alike_alone_and_in_a_batch(device: torch.device) -> None:
    q, k = (random(3, 4, 64, dtype=torch.bfloat16, device=device) for _ in range(2))
    alone_q, alone_k = q[1:2].clone(), k[1:2].clone()
    cos_sin, positions = _table(131072, 64, device), torch.tensor([3, 131071, 9], device=device)
    kernel.rope(q, k, cos_sin, positions)
    kernel.rope(alone_q, alone_k, cos_sin, positions[1:2])
    assert same_bits(q[1:2], alone_q)
    assert same_bits(k[1:2], alone_k)


def test_table_rows_of_other_positions_are_not_read(device: torch.device) -> None:
    q, k = (random(1, 2, 8, dtype=torch.float32, device=device) for _ in range(2))
    cos_sin = poison(torch.empty(5, 8, device=device))
    cos_sin[2] = _table(3, 8, device)[2]
    kernel.rope(q, k, cos_sin, torch.tensor([2], device=device))
    assert q.isfinite().all()
    assert k.isfinite().all()


def test_launch_shares_the_table_among_the_heads_of_a_token() -> None:
    assert choose_launch(32, 8, 64) == RopeLaunch(heads=8, pairs=64, num_warps=2)
    assert choose_launch(4, 4, 2048) == RopeLaunch(heads=4, pairs=128, num_warps=2)
    assert choose_launch(9, 3, 40) == RopeLaunch(heads=8, pairs=64, num_warps=2)
    assert choose_launch(64, 64, 64) == RopeLaunch(heads=8, pairs=64, num_warps=2)
    assert choose_launch(1, 1, 2) == RopeLaunch(heads=1, pairs=2, num_warps=1)


def test_no_tokens_are_no_launch_and_calls_against_the_contract_are_named(
    device: torch.device,
) -> None:
    q, cos_sin = torch.zeros(2, 1, 8, device=device), torch.zeros(4, 8, device=device)
    positions = torch.zeros(2, dtype=torch.int64, device=device)
    rope(q[:0], q[:0], cos_sin, positions[:0])
    with pytest.raises(OperatorError, match="expected num_tokens and head_dim of q"):
        rope(q, q[:1], cos_sin, positions)
    with pytest.raises(OperatorError, match="positions has dtype"):
        rope(q, q, cos_sin, positions.float())
    with pytest.raises(OperatorError, match="expected float32"):
        rope(q, q, cos_sin.half(), positions)
    with pytest.raises(OperatorError, match=r"k has dtype torch.float16"):
        rope(q, q.half(), cos_sin, positions)
    with pytest.raises(OperatorError, match=r"expected \[max_positions, even <= head_dim\]"):
        rope(q, q, torch.zeros(4, 16, device=device), positions)
