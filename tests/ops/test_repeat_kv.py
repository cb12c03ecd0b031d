import pytest
import torch

from lite_llama.errors import OperatorError
from lite_llama.ops import repeat_kv
from lite_llama.ops.repeat_kv import kernel
from tests.ops.compare import DTYPES, poison_new_outputs, random, same_bits


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("q_per_kv", [1, 3, 4, 7, 8])
@pytest.mark.parametrize(("heads", "dim"), [(8, 128), (3, 80)])
def test_every_head_is_repeated_next_to_itself(
    device: torch.device,
    dtype: torch.dtype,
    q_per_kv: int,
    heads: int,
    dim: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = random(2, heads, dim, dtype=dtype, device=device)
    want = x.repeat_interleave(q_per_kv, dim=1)
    poison_new_outputs(monkeypatch)
    assert same_bits(kernel.repeat_kv(x, q_per_kv), want)


def test_heads_may_lie_apart(device: torch.device) -> None:
    x = random(4, 2, 16, dtype=torch.bfloat16, device=device)
    assert same_bits(kernel.repeat_kv(x[::2], 2), x[::2].repeat_interleave(2, dim=1))
    turned = x.transpose(0, 2)
    assert same_bits(kernel.repeat_kv(turned, 2), turned.repeat_interleave(2, dim=1))


def test_no_tokens_and_calls_against_the_contract(device: torch.device) -> None:
    x = torch.zeros(0, 2, 8, device=device)
    assert repeat_kv(x, 4).shape == (0, 8, 8)
    with pytest.raises(OperatorError, match="q_per_kv is 0"):
        repeat_kv(x, 0)
    with pytest.raises(OperatorError, match="expected 3 dimensions"):
        repeat_kv(x.flatten(1), 2)
