import pytest
import torch
from torch import Tensor

from lite_llama.errors import OperatorError
from lite_llama.ops import norm_rope_write
from lite_llama.ops.norm_rope_write import kernel, reference
from tests.ops.compare import DTYPES, assert_close_to_reference, poison, random, same_bits
from tests.ops.tolerances import FUSED

BLOCKS, BLOCK_SIZE = 3, 4
SLOTS = [6, 0, -1]


def _arguments(
    device: torch.device, dtype: torch.dtype, heads: tuple[int, int], head_dim: int
) -> dict[str, Tensor]:
    angles = torch.randn(16, head_dim // 2)
    columns = (heads[0] + 2 * heads[1]) * head_dim
    return {
        # As a product rounded to dtype leaves it.
        "qkv": random(3, columns, dtype=dtype, device=device).float(),
        "q_norm": random(head_dim, dtype=dtype, device=device),
        "k_norm": random(head_dim, dtype=dtype, device=device),
        "cos_sin": torch.cat((angles.cos(), angles.sin()), -1).to(device),
        "positions": torch.tensor([11, 3, 15], device=device),
        "k_cache": poison(
            torch.empty(BLOCKS, BLOCK_SIZE, heads[1], head_dim, dtype=dtype, device=device)
        ),
        "v_cache": poison(
            torch.empty(BLOCKS, BLOCK_SIZE, heads[1], head_dim, dtype=dtype, device=device)
        ),
        "slot_mapping": torch.tensor(SLOTS, device=device),
    }


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "head_dim"), [((4, 2), 64), ((3, 1), 80), ((2, 1), 128)])
def test_heads_are_normalised_turned_and_stored(
    device: torch.device, dtype: torch.dtype, heads: tuple[int, int], head_dim: int
) -> None:
    given = _arguments(device, dtype, heads, head_dim)
    wide = {
        name: value.double() if name in ("q_norm", "k_norm", "k_cache", "v_cache") else value
        for name, value in given.items()
    }
    want = reference.norm_rope_write(**wide, eps=1e-6)
    before = given["k_cache"].clone(), given["v_cache"].clone()
    got = kernel.norm_rope_write(**given, eps=1e-6, overlap=device.type == "cuda")
    assert_close_to_reference(got, want, FUSED)
    for name, old in zip(("k_cache", "v_cache"), before, strict=True):
        new, wanted = given[name].flatten(0, 1), wide[name].flatten(0, 1)
        assert_close_to_reference(new[SLOTS[:2]], wanted[SLOTS[:2]], FUSED)
        kept = [slot for slot in range(BLOCKS * BLOCK_SIZE) if slot not in SLOTS]
        assert same_bits(new[kept], old.flatten(0, 1)[kept])


def test_calls_against_the_contract_name_the_argument(device: torch.device) -> None:
    given = _arguments(device, torch.float32, (4, 2), 8)
    with pytest.raises(OperatorError, match=r"qkv is torch.float16"):
        norm_rope_write(**(given | {"qkv": given["qkv"].half()}), eps=1e-6)
    with pytest.raises(OperatorError, match="qkv has 24 columns"):
        norm_rope_write(**(given | {"qkv": given["qkv"][:, :24].contiguous()}), eps=1e-6)
    with pytest.raises(OperatorError, match=r"q_norm has shape \(3,\)"):
        norm_rope_write(**(given | {"q_norm": given["q_norm"][:3]}), eps=1e-6)
