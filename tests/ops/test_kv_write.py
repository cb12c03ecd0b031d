import pytest
import torch
from torch import Tensor

from lite_llama.errors import OperatorError
from lite_llama.ops import kv_write
from lite_llama.ops.kv_write import kernel
from tests.ops.compare import DTYPES, poison, random, same_bits

FP8 = (torch.float8_e4m3fn, torch.float8_e5m2)


def _caches(dtype: torch.dtype, device: torch.device, heads: int, dim: int) -> list[Tensor]:
    return [poison(torch.empty(5, 4, heads, dim, dtype=dtype, device=device)) for _ in range(2)]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(("heads", "dim"), [(2, 8), (1, 80), (3, 64), (8, 256)])
def test_tokens_land_in_their_slots_and_nothing_else_changes(
    device: torch.device, dtype: torch.dtype, heads: int, dim: int
) -> None:
    k, v = (random(4, heads, dim, dtype=dtype, device=device) for _ in range(2))
    caches = _caches(dtype, device, heads, dim)
    slots = torch.tensor([7, -1, 0, 19], device=device)
    want = [cache.clone().view(20, heads, dim) for cache in caches]
    for cache, new in zip(want, (k, v), strict=True):
        cache[7], cache[0], cache[19] = new[0], new[2], new[3]
    kernel.kv_write(k, v, *caches, slots, None)
    for cache, expected in zip(caches, want, strict=True):
        assert same_bits(cache.view(20, heads, dim), expected)


def test_padding_slots_leave_the_cache_untouched(device: torch.device) -> None:
    k = random(3, 2, 8, dtype=torch.float32, device=device)
    caches = _caches(torch.float32, device, 2, 8)
    before = [cache.clone() for cache in caches]
    kernel.kv_write(k, k, *caches, torch.full((3,), -1, dtype=torch.int32, device=device), None)
    assert all(same_bits(a, b) for a, b in zip(caches, before, strict=True))


@pytest.mark.parametrize("slots", [[6], [-1], [-1, 6]])
def test_the_reference_stores_one_token_and_skips_padding(slots: list[int]) -> None:
    k = random(len(slots), 2, 8, dtype=torch.float32, device=torch.device("cpu"))
    caches = _caches(torch.float32, torch.device("cpu"), 2, 8)
    want = caches[0].clone().view(20, 2, 8)
    if slots[-1] >= 0:
        want[6] = k[-1]
    kv_write(k, k, *caches, torch.tensor(slots))
    assert all(same_bits(cache.view(20, 2, 8), want) for cache in caches)


def test_slices_of_a_fused_buffer_are_stored(device: torch.device) -> None:
    fused = random(3, 4, 8, dtype=torch.bfloat16, device=device)
    k, v = fused[:, :2], fused[:, 2:]
    caches = _caches(torch.bfloat16, device, 2, 8)
    kernel.kv_write(k, v, *caches, torch.arange(3, device=device), None)
    for cache, new in zip(caches, (k, v), strict=True):
        assert same_bits(cache.view(20, 2, 8)[:3], new)


@pytest.mark.parametrize("cache_dtype", [torch.float16, *FP8])
def test_values_are_rounded_to_the_cache_and_fp8_saturates(
    device: torch.device, cache_dtype: torch.dtype
) -> None:
    if device.type == "cuda" and torch.cuda.get_device_capability() < (8, 9):
        pytest.skip("fp8 conversions need Ada or Hopper")
    k = random(2, 2, 64, dtype=torch.float32, device=device, scale=20.0)
    k[0, 0, :2] = torch.tensor([1e5, -1e5]) if cache_dtype in FP8 else torch.tensor([6e4, -6e4])
    limit = torch.finfo(cache_dtype).max if cache_dtype in FP8 else None
    kernel_caches, reference_caches = (
        [torch.zeros(1, 2, 2, 64, dtype=cache_dtype, device=where) for _ in range(2)]
        for where in (device, "cpu")
    )
    slots = torch.tensor([1, 0], device=device)
    kernel.kv_write(k, k, *kernel_caches, slots, limit)
    kv_write(k.cpu(), k.cpu(), *reference_caches, slots.cpu())
    for got, want in zip(kernel_caches, reference_caches, strict=True):
        assert same_bits(got.cpu(), want)
        assert got.float().isfinite().all()


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: the caches take 8 GiB")
def test_slots_past_two_to_the_31_elements_are_reached() -> None:
    caches = [
        torch.zeros(2**17 + 1, 16, 8, 128, dtype=torch.bfloat16, device="cuda") for _ in range(2)
    ]
    k = random(1, 8, 128, dtype=torch.bfloat16, device=torch.device("cuda"))
    kernel.kv_write(k, k, *caches, torch.tensor([16 * 2**17 + 15], device="cuda"), None)
    assert same_bits(caches[0][-1, -1], k[0])


def test_no_tokens_are_no_launch_and_calls_against_the_contract_are_named(
    device: torch.device,
) -> None:
    k = torch.zeros(2, 2, 8, device=device)
    caches = _caches(torch.float32, device, 2, 8)
    slots = torch.zeros(2, dtype=torch.int64, device=device)
    kv_write(k[:0], k[:0], *caches, slots[:0])
    with pytest.raises(OperatorError, match="slot_mapping has dtype"):
        kv_write(k, k, *caches, slots.float())
    with pytest.raises(OperatorError, match="k_cache has shape"):
        kv_write(k[:, :1], k[:, :1], *caches, slots)
    with pytest.raises(OperatorError, match="expected a contiguous cache"):
        kv_write(k, k, *(cache[:, ::2] for cache in caches), slots)
    with pytest.raises(OperatorError, match="expected a floating type"):
        kv_write(k, k, *(cache.nan_to_num().to(torch.int8) for cache in caches), slots)
