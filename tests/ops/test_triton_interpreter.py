"""The CPU stand-in for a GPU rounds as torch does; on a GPU these run on the GPU."""

import pytest
import torch
import triton
import triton.language as tl

from tests.ops.compare import random, same_bits


@triton.jit
def _arithmetic(x_ptr, y_ptr, sum_ptr, product_ptr, larger_ptr, n, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    mask = at < n
    x = tl.load(x_ptr + at, mask=mask)
    y = tl.load(y_ptr + at, mask=mask)
    tl.store(sum_ptr + at, x + y, mask=mask)
    tl.store(product_ptr + at, x * y, mask=mask)
    tl.store(larger_ptr + at, x > y, mask=mask)


@triton.jit
def _cast(x_ptr, out_ptr, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(out_ptr + at, tl.load(x_ptr + at).to(out_ptr.dtype.element_ty))


@triton.jit
def _dot(a_ptr, b_ptr, out_ptr, N: tl.constexpr, LAUNCH_DEPENDENTS: tl.constexpr):
    if LAUNCH_DEPENDENTS:
        tl.extra.cuda.gdc_launch_dependents()
        tl.extra.cuda.gdc_wait()
    at = tl.arange(0, N)
    square = at[:, None] * N + at[None, :]
    tl.store(out_ptr + square, tl.dot(tl.load(a_ptr + square), tl.load(b_ptr + square)))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_arithmetic_and_comparison_match_torch_bit_for_bit(
    device: torch.device, dtype: torch.dtype
) -> None:
    x, y = (random(1000, dtype=dtype, device=device) for _ in range(2))
    total, product = torch.empty_like(x), torch.empty_like(x)
    larger = torch.empty(1000, dtype=torch.bool, device=device)
    _arithmetic[(1,)](x, y, total, product, larger, 1000, BLOCK=1024)
    assert same_bits(total, x + y)
    assert same_bits(product, x * y)
    assert torch.equal(larger, x > y)


@pytest.mark.parametrize("target", [torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_narrowing_rounds_to_nearest_even(device: torch.device, target: torch.dtype) -> None:
    x = random(4096, dtype=torch.float32, device=device, scale=20.0)
    out = torch.empty(4096, dtype=target, device=device)
    _cast[(1,)](x, out, BLOCK=4096)
    assert same_bits(out, x.to(target))


@pytest.mark.parametrize("source", [torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2])
def test_every_narrow_code_widens_exactly(device: torch.device, source: torch.dtype) -> None:
    count = 65536 if source == torch.bfloat16 else 256
    codes = torch.arange(count, dtype=torch.int32, device=device)
    x = codes.to(torch.uint8 if count == 256 else torch.uint16).view(source)
    out = torch.empty(count, dtype=torch.float32, device=device)
    _cast[(1,)](x, out, BLOCK=count)
    torch.testing.assert_close(out, x.float(), rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float8_e4m3fn])
def test_products_accumulate_in_float32(device: torch.device, dtype: torch.dtype) -> None:
    if device.type == "cuda":
        pytest.skip("about the interpreter; a GPU accumulates fp8 products with fewer bits")
    a, b = (random(64, 64, dtype=torch.float32, device=device).to(dtype) for _ in range(2))
    out = torch.empty(64, 64, dtype=torch.float32, device=device)
    _dot[(1,)](a, b, out, N=64, LAUNCH_DEPENDENTS=True)
    torch.testing.assert_close(out.double(), a.double() @ b.double(), rtol=1e-4, atol=1e-4)
