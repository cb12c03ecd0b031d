"""Each layout multiplies as the matrix that it stands for."""

import pytest
import torch
from torch import Tensor

from lite_llama.formats.registry import FORMATS
from lite_llama.layouts.dense import DenseWeight
from lite_llama.layouts.encoded_rows import EncodedRows
from lite_llama.layouts.int4_groups import Int4Groups
from lite_llama.layouts.refined_rows import NUM_REFINED, RefinedRows

ROWS, COLUMNS = 96, 128
GENERATOR = torch.Generator().manual_seed(0)


def normal(*shape: int) -> Tensor:
    return torch.randn(shape, generator=GENERATOR)


def grouped(per_group: Tensor) -> Tensor:
    return per_group.repeat_interleave(32, dim=1)


def as_bf16(x: Tensor) -> Tensor:
    return x.to(torch.bfloat16).double()


def four_bit() -> tuple[Int4Groups, Tensor]:
    """A packed weight, and the float64 values it stands for (scale and offset in bf16)."""
    codes = torch.randint(0, 16, (ROWS, COLUMNS), generator=GENERATOR).byte()
    scale, offset = normal(ROWS, 4).abs() * 0.05 + 0.01, normal(ROWS, 4) * 0.1
    values = grouped(as_bf16(scale)) * (codes.double() - 8) + grouped(as_bf16(offset))
    return Int4Groups.from_codes(codes, scale, offset), values


def eight_bit() -> tuple[Int4Groups, Tensor]:
    codes = torch.randint(-128, 128, (ROWS, COLUMNS), generator=GENERATOR).to(torch.int8)
    scale = normal(ROWS, 4).abs() * 0.01 + 0.001
    return Int4Groups.from_int8(codes, scale), grouped(as_bf16(scale)) * codes.double()


BUILDERS = {"four bits": four_bit, "eight bits": eight_bit}


@pytest.mark.parametrize("num_rows", [1, 2, 5, 33])
@pytest.mark.parametrize("name", BUILDERS)
def test_int4_groups_multiply_to_bf16_accuracy(name: str, num_rows: int) -> None:
    weight, values = BUILDERS[name]()
    x = normal(num_rows, COLUMNS)
    given = weight.matmul(x)
    assert given.dtype == torch.float32
    assert given.shape == (num_rows, ROWS)
    # Operands are rounded to bf16 and so is the result, of each plane: half an ulp is 2^-9.
    # A plane of eight-bit codes is up to 16 times as large as what they add up to.
    magnitude = as_bf16(x).abs() @ values.abs().T
    error = (given.double() - as_bf16(x) @ values.T).abs()
    assert bool((error <= 2**-7 * magnitude + 1e-6).all())
    relative = error.norm() / (as_bf16(x) @ values.T).norm()
    assert float(relative) < 4e-3


@pytest.mark.parametrize("name", BUILDERS)
def test_int4_groups_unpack_to_their_values(name: str) -> None:
    weight, values = BUILDERS[name]()
    unpacked = weight.unpack()
    assert unpacked.shape == weight.shape == (ROWS, COLUMNS)
    torch.testing.assert_close(
        unpacked.double(), values, rtol=2**-7, atol=2e-2 * values.abs().max()
    )
    # Scale, offset and product are rounded, each by at most half an ulp of the largest term.
    assert float((unpacked.double() - values).norm() / values.norm()) < 4e-3


@pytest.mark.parametrize(("name", "planes"), [("four bits", 1), ("eight bits", 2)])
def test_int4_groups_count_their_bytes(name: str, planes: int) -> None:
    weight, _ = BUILDERS[name]()
    assert weight.num_planes == planes
    assert weight.nbytes == planes * (ROWS * COLUMNS // 2 + ROWS * COLUMNS // 32 * 4)


@pytest.mark.parametrize("code", [-128, -127, -17, -16, -1, 0, 1, 15, 16, 127])
def test_every_eight_bit_code_splits_into_its_planes(code: int) -> None:
    codes = torch.full((16, 32), code, dtype=torch.int8)
    weight = Int4Groups.from_int8(codes, torch.ones(16, 1))
    assert bool((weight.unpack() == code).all())


def test_dense_multiplies_in_its_own_width() -> None:
    values, x = normal(ROWS, COLUMNS), normal(3, COLUMNS)
    exact = DenseWeight(values)
    torch.testing.assert_close(exact.matmul(x), x @ values.T, rtol=1e-5, atol=1e-5)
    half = DenseWeight(values.to(torch.bfloat16))
    given = half.matmul(x)
    assert given.dtype == torch.float32
    expected = x.to(torch.bfloat16).double() @ values.to(torch.bfloat16).double().T
    torch.testing.assert_close(given.double(), expected, rtol=2**-7, atol=2e-2)
    assert (exact.shape, exact.nbytes, half.nbytes) == ((96, 128), 96 * 128 * 4, 96 * 128 * 2)
    assert bool((half.unpack() == values.to(torch.bfloat16).float()).all())


def q8_rows(values: Tensor) -> tuple[EncodedRows, Tensor]:
    """`values` [n, 32 k] in Q8_0, and what that decodes to."""
    blocks = values.view(-1, 32)
    scale = (blocks.abs().amax(1, keepdim=True) / 127).to(torch.float16)
    codes = (blocks / scale.float()).round().clamp(-127, 127).to(torch.int8)
    data = torch.cat((scale.view(torch.uint8), codes.view(torch.uint8)), dim=1)
    fmt = FORMATS["Q8_0"]
    rows = EncodedRows(
        data.reshape(len(values), -1), fmt.block_bytes, values.shape[1], fmt.dequantize
    )
    return rows, (codes.float() * scale.float()).view(values.shape)


def test_encoded_rows_decode_what_is_asked_for() -> None:
    table, values = q8_rows(normal(50, 64))
    indices = torch.tensor([49, 0, 7, 7])
    assert bool((table.gather(indices) == values[indices]).all())
    assert (table.shape, table.nbytes) == ((50, 64), 50 * 2 * 34)


def test_the_refined_rows_are_exact_and_the_others_as_they_were() -> None:
    values = normal(300, 64)
    exact, decoded = q8_rows(values)
    coarse = DenseWeight(decoded.to(torch.bfloat16))
    weight = RefinedRows(coarse, exact)
    x = normal(5, 64)
    given, rough, true = weight.matmul(x), coarse.matmul(x), x @ decoded.T
    best = rough.topk(NUM_REFINED).indices
    refined = torch.zeros_like(rough, dtype=torch.bool).scatter_(1, best, value=True)
    torch.testing.assert_close(given[refined], true[refined], rtol=1e-6, atol=1e-5)
    assert bool((given[~refined] == rough[~refined]).all())
    assert float((rough - true)[refined].abs().max()) > 1e-2, "there was nothing to refine"
    assert given.argmax(1).tolist() == true.argmax(1).tolist()
    assert (weight.shape, weight.nbytes) == ((300, 64), coarse.nbytes)


def test_a_large_vocabulary_is_refined_where_its_values_are_largest() -> None:
    values = normal(NUM_REFINED * 64, 32)
    exact, decoded = q8_rows(values)
    coarse = DenseWeight(decoded.to(torch.bfloat16))
    x = normal(3, 32)
    given, rough = RefinedRows(coarse, exact).matmul(x), coarse.matmul(x)
    best = rough.topk(NUM_REFINED).indices
    torch.testing.assert_close(
        given.gather(1, best), (x @ decoded.T).gather(1, best), rtol=1e-6, atol=1e-5
    )
    assert int((given != rough).sum()) <= 3 * NUM_REFINED


def test_a_small_vocabulary_is_refined_whole() -> None:
    values = normal(NUM_REFINED - 10, 32)
    exact, decoded = q8_rows(values)
    x = normal(2, 32)
    given = RefinedRows(DenseWeight(decoded.to(torch.bfloat16)), exact).matmul(x)
    torch.testing.assert_close(given, x @ decoded.T, rtol=1e-6, atol=1e-5)
