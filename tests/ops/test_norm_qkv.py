from contextlib import nullcontext

import pytest
import torch
from torch import Tensor

from lite_llama.errors import OperatorError
from lite_llama.kernel_lib.gemv_launch import GemvLaunch
from lite_llama.ops import norm_qkv
from lite_llama.ops.norm_qkv import kernel, reference
from tests.ops.compare import DTYPES, assert_close_to_reference, poison, random, same_bits
from tests.ops.gemv_launches import Running, on, over_launches
from tests.ops.tolerances import FUSED

BLOCKS, BLOCK_SIZE = 4, 4
SLOTS = [6, 0, -1, 11, 3, -1, 8, 5, 14, 1, -1, 9, 12, -1, 15, 2]
POSITIONS = [11, 3, 15, 0, 7, 7, 2, 9, 4, 13, 1, 10, 6, 5, 12, 8]


def _arguments(
    device: torch.device,
    dtype: torch.dtype,
    heads: tuple[int, int],
    head_dim: int,
    hidden: int,
    num_tokens: int = 1,
) -> dict[str, Tensor]:
    rows = (heads[0] + 2 * heads[1]) * head_dim
    angles = torch.randn(16, head_dim // 2)
    return {
        "x": random(num_tokens, hidden, dtype=dtype, device=device),
        "norm": random(hidden, dtype=dtype, device=device),
        "weight": random(rows, hidden, dtype=dtype, device=device, scale=hidden**-0.5),
        "bias": random(rows, dtype=dtype, device=device),
        "cos_sin": torch.cat((angles.cos(), angles.sin()), -1).to(device),
        "positions": torch.tensor(POSITIONS, device=device)[:num_tokens],
        "k_cache": random(BLOCKS, BLOCK_SIZE, heads[1], head_dim, dtype=dtype, device=device),
        "v_cache": random(BLOCKS, BLOCK_SIZE, heads[1], head_dim, dtype=dtype, device=device),
        "slot_mapping": torch.tensor(SLOTS, device=device)[:num_tokens],
    }


@pytest.mark.parametrize("dtype", DTYPES)
@over_launches
@pytest.mark.parametrize(
    ("heads", "head_dim", "hidden", "biased"),
    [
        ((4, 2), 8, 64, True),
        ((9, 3), 16, 144, False),
        ((2, 1), 80, 96, True),
        ((3, 1), 24, 512, True),
    ],
)
def test_queries_keys_and_values_equal_the_reference(
    device: torch.device,
    dtype: torch.dtype,
    num_tokens: int,
    launch: GemvLaunch,
    heads: tuple[int, int],
    head_dim: int,
    hidden: int,
    biased: bool,  # noqa: FBT001
) -> None:
    shape = (heads, head_dim, hidden)
    check(num_tokens, on(device, launch), shape, dtype, device, biased=biased)


def check(
    num_tokens: int, launch: GemvLaunch, shape: tuple[tuple[int, int], int, int],
    dtype: torch.dtype, device: torch.device, *, biased: bool, running: Running = nullcontext,
) -> None:  # fmt: skip
    """Compare a launch, made while something is `running`, with the reference.

    `shape`: query and KV heads, the size of each, hidden size.
    """
    heads, head_dim, hidden = shape
    given = _arguments(device, dtype, heads, head_dim, hidden, num_tokens)
    bias = given.pop("bias") if biased else None
    given.pop("bias", None)
    x, norm, weight = (given.pop(name) for name in ("x", "norm", "weight"))
    wide = {n: v.double() if v.dtype.is_floating_point else v.clone() for n, v in given.items()}
    want = reference.norm_qkv(
        x.double(), norm.double(), weight.double(), None if bias is None else bias.double(),
        1e-5, **wide,
    )  # fmt: skip
    before = given["k_cache"].clone(), given["v_cache"].clone()
    with running():
        got = kernel.norm_qkv(x, norm, weight, bias, 1e-5, **given, launch=launch)
    assert_close_to_reference(got, want, FUSED)
    for name, old in zip(("k_cache", "v_cache"), before, strict=True):
        new, wanted = given[name].flatten(0, 1), wide[name].flatten(0, 1)
        written = [slot for slot in SLOTS[:num_tokens] if slot >= 0]
        assert_close_to_reference(new[written], wanted[written], FUSED)
        kept = [slot for slot in range(BLOCKS * BLOCK_SIZE) if slot not in written]
        assert same_bits(new[kept], old.flatten(0, 1)[kept])


def test_a_padding_slot_leaves_the_caches_untouched(device: torch.device) -> None:
    given = _arguments(device, torch.float32, (4, 2), 8, 64)
    given["slot_mapping"].fill_(-1)
    poison(given["k_cache"])
    before = given["k_cache"].clone(), given["v_cache"].clone()
    x, norm, weight, bias = (given.pop(name) for name in ("x", "norm", "weight", "bias"))
    kernel.norm_qkv(x, norm, weight, bias, 1e-5, **given, launch=None)
    assert same_bits(given["k_cache"], before[0])
    assert same_bits(given["v_cache"], before[1])


def test_calls_against_the_contract_name_the_argument(device: torch.device) -> None:
    given = _arguments(device, torch.float32, (4, 2), 8, 64)
    x, norm, weight, bias = (given.pop(name) for name in ("x", "norm", "weight", "bias"))
    with pytest.raises(OperatorError, match=r"x has shape \(17, 64\)"):
        norm_qkv(x.expand(17, -1), norm, weight, bias, 1e-5, **given)
    with pytest.raises(OperatorError, match=r"weight has 24 rows"):
        norm_qkv(x, norm, weight[:24].contiguous(), None, 1e-5, **given)
    with pytest.raises(OperatorError, match=r"bias has shape"):
        norm_qkv(x, norm, weight, bias[:3], 1e-5, **given)
