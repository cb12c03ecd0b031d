import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lite_llama.errors import OperatorError
from lite_llama.kernel_lib.gpu import A100, B200, H200, RTX_5090, GpuSpec
from lite_llama.kernel_lib.matmul import matmul
from lite_llama.kernel_lib.matmul_launch import (
    CUBLAS,
    MatmulLaunch,
    MatmulProblem,
    choose_launch,
)
from lite_llama.layouts.int4_groups import Int4Groups
from lite_llama.ops import linear, linear_fp8
from lite_llama.ops.linear import kernel
from tests.ops.compare import (
    DTYPES,
    assert_close_to_reference,
    nmse,
    non_contiguous,
    poison_new_outputs,
    random,
    same_bits,
)
from tests.ops.tolerances import GEMM

ON_GPU = torch.cuda.is_available()
needs_gpu = pytest.mark.skipif(not ON_GPU, reason="no GPU: too many programs to interpret")
# Large enough that float32's own rounding in another order of summation does not decide.
FP8_GEMM = {torch.float32: 1e-5, torch.float16: 1e-5, torch.bfloat16: 1e-5}


def problem(
    m: int, n: int, k: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    x = random(m, k, dtype=dtype, device=device)
    weight = random(n, k, dtype=dtype, device=device, scale=k**-0.5)
    return x, weight, random(n, dtype=dtype, device=device)


def want(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    return F.linear(x.double(), weight.double(), None if bias is None else bias.double())


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [1, 2, 5, 16, 17, 64, 65])
@pytest.mark.parametrize(
    ("n", "k"),
    [(3, 4), (40, 576), (130, 96), pytest.param(1536, 1536, marks=needs_gpu)],
)
def test_products_with_bias_in_every_dtype(
    device: torch.device,
    dtype: torch.dtype,
    m: int,
    n: int,
    k: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, weight, bias = problem(m, n, k, dtype, device)
    by_torch = F.linear(x, weight, bias)
    poison_new_outputs(monkeypatch)
    got = kernel.linear(x, weight, bias)
    assert_close_to_reference(got, want(x, weight, bias), GEMM, by_torch)
    assert_close_to_reference(kernel.linear(x, weight, None), want(x, weight), GEMM)


@needs_gpu
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("m", "n", "k"),
    [(512, 4096, 4096), (1, 49152, 576), (1, 128256, 2048), (8, 8192, 2048), (33, 2048, 8192)],
)
def test_sizes_of_known_models(
    device: torch.device, dtype: torch.dtype, m: int, n: int, k: int
) -> None:
    x, weight, bias = problem(m, n, k, dtype, device)
    got = kernel.linear(x, weight, bias)
    assert_close_to_reference(got, want(x, weight, bias), GEMM, F.linear(x, weight, bias))


SQUARE = MatmulLaunch("tile", 64, 32, 32, 4, 3)
TILES = {
    "pointers": SQUARE,
    "descriptors": MatmulLaunch("tile", 64, 32, 32, 4, 3, use_tma=True),
    "one row of tiles a group": MatmulLaunch("tile", 32, 64, 16, 4, 2, group_m=1),
    "a vector": MatmulLaunch("vector", 1, 4, 64, 4),
    "two vectors": MatmulLaunch("vector", 2, 2, 32, 2),
}


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [1, 5, 17, 65])
@pytest.mark.parametrize(("n", "k"), [(3, 4), (40, 576), (130, 96)])
def test_tiles_multiply_in_every_dtype(
    device: torch.device,
    dtype: torch.dtype,
    m: int,
    n: int,
    k: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x, weight, bias = problem(m, n, k, dtype, device)
    by_torch = F.linear(x, weight, bias)
    poison_new_outputs(monkeypatch)
    got = matmul(SQUARE, x, weight, bias)
    assert_close_to_reference(got, want(x, weight, bias), GEMM, by_torch)


@pytest.mark.parametrize("how", TILES.values(), ids=TILES.keys())
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("m", "n", "k"), [(100, 70, 96), (1, 33, 40), (1, 3, 2112)])
def test_every_kernel_multiplies_and_gates(
    device: torch.device, how: MatmulLaunch, m: int, n: int, k: int, *, gated: bool
) -> None:
    m = how.block_m if how.kind == "vector" else m
    x, weight, bias = problem(m, 2 * n if gated else n, k, torch.bfloat16, device)
    got = matmul(how, x, weight, bias[:n], gated=gated)
    expected = want(x, weight[:n], bias[:n])
    if gated:
        expected = F.silu(expected) * want(x, weight[n:])
    assert_close_to_reference(got, expected, GEMM)


@pytest.mark.parametrize("kind", ["pointers", "descriptors", "a vector", "two vectors"])
def test_strided_rows_are_read_in_place(device: torch.device, kind: str) -> None:
    m = TILES[kind].block_m if TILES[kind].kind == "vector" else 3
    x, weight, bias = problem(m, 40, 64, torch.float16, device)
    got = matmul(TILES[kind], non_contiguous(x), non_contiguous(weight), bias)
    assert same_bits(got, matmul(TILES[kind], x, weight, bias))


@pytest.mark.parametrize("m", [1, 3])
def test_any_strides_give_the_same_product(device: torch.device, m: int) -> None:
    x, weight, bias = problem(m, 40, 64, torch.float16, device)
    for strided in (non_contiguous(weight), weight.T.contiguous().T):
        got = kernel.linear(non_contiguous(x), strided, bias)
        assert_close_to_reference(got, want(x, weight, bias), GEMM)


@pytest.mark.parametrize("gated", [False, True])
def test_a_row_gives_the_same_bits_alone_and_among_others(
    device: torch.device, *, gated: bool
) -> None:
    x, weight, _ = problem(16, 48, 160, torch.bfloat16, device)
    together = matmul(SQUARE, x, weight, gated=gated)
    assert same_bits(together[-2:], matmul(SQUARE, x[-2:], weight, gated=gated))


def test_infinities_stay_in_their_row(device: torch.device) -> None:
    x, weight, _ = problem(3, 40, 64, torch.float32, device)
    x[1, 5] = float("inf")
    got = kernel.linear(x, weight, None)
    assert not got[1].isfinite().any()
    assert_close_to_reference(got[[0, 2]], want(x[[0, 2]], weight), GEMM)


@pytest.mark.parametrize("shape", [(2, 3, 8), (8,), (0, 8), (2, 0, 8)])
def test_leading_dimensions_are_kept(device: torch.device, shape: tuple[int, ...]) -> None:
    x = random(*shape, dtype=torch.float32, device=device)
    weight = random(5, 8, dtype=torch.float32, device=device)
    got = linear(x, weight)
    assert got.shape == (*shape[:-1], 5)
    assert nmse(got, want(x, weight)) < 1e-11


def test_a_product_over_nothing_is_the_bias(device: torch.device) -> None:
    bias = torch.ones(3, device=device)
    x, weight = torch.empty(2, 0, device=device), torch.empty(3, 0, device=device)
    assert torch.equal(linear(x, weight, bias), torch.ones(2, 3, device=device))


def test_the_weights_dtype_may_differ_from_the_inputs(device: torch.device) -> None:
    x, weight, bias = problem(2, 40, 64, torch.bfloat16, device)
    got = kernel.linear(x.float(), weight, bias)
    assert got.dtype == torch.float32
    assert nmse(got, want(x, weight, bias)) < 1e-11


def test_other_layouts_multiply_themselves() -> None:
    codes = torch.randint(0, 16, (32, 64))
    packed = Int4Groups.from_codes(codes.to(torch.uint8), torch.ones(32, 2), torch.zeros(32, 2))
    x = torch.randint(-2, 3, (3, 64)).float()
    assert torch.equal(linear(x, packed), F.linear(x, codes.float() - 8.0))


@pytest.mark.parametrize("out_dtype", [torch.bfloat16, torch.float16, torch.float32])
@pytest.mark.parametrize(("m", "n", "k"), [(1, 48, 64), (5, 33, 96), (70, 130, 160)])
def test_fp8_products_match_dequantised_ones(
    device: torch.device, out_dtype: torch.dtype, m: int, n: int, k: int
) -> None:
    x, weight, bias = problem(m, n, k, torch.float32, device)
    x, weight = x.to(torch.float8_e4m3fn), (64 * weight).to(torch.float8_e4m3fn)
    scales = (torch.tensor(2.0, device=device), torch.tensor([1 / 64], device=device))
    expected = want(x.float() * scales[0], weight.float() * scales[1], bias)
    if not ON_GPU or kernel.has_fp8(device):
        got = kernel.linear_fp8(x, weight, *scales, bias, out_dtype)
        assert got.dtype == out_dtype
        assert_close_to_reference(got, expected, FP8_GEMM)
    got = linear_fp8(x, weight, *scales, bias, out_dtype)
    assert_close_to_reference(got, expected, FP8_GEMM)


def test_calls_against_the_contract_name_the_argument(device: torch.device) -> None:
    x, weight = torch.zeros(2, 4, device=device), torch.zeros(3, 4, device=device)
    with pytest.raises(OperatorError, match=r"x has shape \(2, 4\), expected last dimension 5"):
        linear(x, torch.zeros(3, 5, device=device))
    with pytest.raises(OperatorError, match=r"bias has shape \(4,\), expected \(3,\)"):
        linear(x, weight, torch.zeros(4, device=device))
    with pytest.raises(OperatorError, match=r"x has dtype torch.int64, expected float32"):
        linear(x.long(), weight)
    with pytest.raises(OperatorError, match=r"weight has shape \(4,\), expected 2 dimensions"):
        linear(x, weight[0])
    with pytest.raises(OperatorError, match="weight is on meta, expected"):
        linear(x, weight.to("meta"))


def test_fp8_calls_against_the_contract_name_the_argument(device: torch.device) -> None:
    x = torch.zeros(2, 4, device=device).to(torch.float8_e4m3fn)
    one = torch.ones(1, device=device)
    with pytest.raises(OperatorError, match=r"weight has dtype torch.float32, expected torch.fl"):
        linear_fp8(x, x.float(), one, one)
    with pytest.raises(OperatorError, match=r"x has shape \(2, 4\), expected 3 columns"):
        linear_fp8(x, x[:, :3], one, one)
    with pytest.raises(OperatorError, match=r"x_scale is torch.float32 \(2,\), expected one"):
        linear_fp8(x, x, torch.ones(2, device=device), one)
    with pytest.raises(OperatorError, match=r"out_dtype is torch.int8"):
        linear_fp8(x, x, one, one, out_dtype=torch.int8)


GPUS = {"A100": A100, "H200": H200, "B200": B200, "RTX 5090": RTX_5090}


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS.keys())
@pytest.mark.parametrize(
    ("dtype", "gated"),
    [(torch.float8_e4m3fn, False), *((t, gated) for t in DTYPES for gated in (False, True))],
)
def test_launches_fit_the_shared_memory(gpu: GpuSpec, dtype: torch.dtype, gated: bool) -> None:  # noqa: FBT001
    for m in (1, 2, 16, 17, 64, 65, 512, 8192):
        for n in (576, 4096, 128256):
            how = choose_launch(MatmulProblem(m, n, 4096, dtype, gated), gpu)
            columns = how.block_n * (2 if gated else 1)
            stage_bytes = (how.block_m + columns) * how.block_k * dtype.itemsize
            assert how.kind != "tile" or stage_bytes * how.num_stages <= gpu.shared_bytes_per_block
            assert how.kind != "vector" or m == how.block_m
            assert how.kind != "cublas" or not gated


MEASURED = {
    "one row streams": (MatmulProblem(1, 3072, 2048, torch.bfloat16), (1, 512, 1)),
    "one long row": (MatmulProblem(1, 2048, 8192, torch.bfloat16), (1, 2048, 4)),
    "one row of a large weight": (MatmulProblem(1, 4096, 14336, torch.bfloat16), (1, 2048, 2)),
    "two rows": (MatmulProblem(2, 3072, 2048, torch.bfloat16), (1, 512, 1)),
    "two long rows": (MatmulProblem(2, 2048, 8192, torch.bfloat16), (2, 1024, 2)),
    "two rows of a larger weight": (MatmulProblem(2, 8192, 2048, torch.bfloat16), None),
    "a few rows of a small weight": (MatmulProblem(4, 2048, 8192, torch.bfloat16), None),
    "a few rows of the head": (MatmulProblem(2, 128256, 2048, torch.bfloat16), (64, 128, 4)),
    "a few rows, gated": (MatmulProblem(2, 8192, 2048, torch.bfloat16, gated=True), (64, 128, 4)),
    "many rows, gated": (MatmulProblem(512, 8192, 2048, torch.bfloat16, gated=True), (128, 64, 8)),
    "few tiles, gated": (MatmulProblem(128, 8192, 2048, torch.bfloat16, gated=True), (64, 64, 4)),
    "a small square": (MatmulProblem(512, 512, 512, torch.bfloat16), (64, 128, 4)),
    "a large square": (MatmulProblem(4096, 4096, 4096, torch.bfloat16), None),
    "exact float32": (MatmulProblem(16, 2048, 2048, torch.float32), None),
    "a small square in fp8": (MatmulProblem(1024, 1024, 1024, torch.float8_e4m3fn), (128, 128, 4)),
    "some rows in fp8": (MatmulProblem(1536, 2048, 2048, torch.float8_e4m3fn), (128, 128, 8)),
    "a square in fp8": (MatmulProblem(2048, 2048, 2048, torch.float8_e4m3fn), None),
    "a large square in fp8": (MatmulProblem(4096, 4096, 4096, torch.float8_e4m3fn), None),
}


@pytest.mark.parametrize(("shape", "tile"), MEASURED.values(), ids=MEASURED.keys())
def test_the_choice_is_the_fastest_measured(
    shape: MatmulProblem, tile: tuple[int, int, int] | None
) -> None:
    how = choose_launch(shape, H200)
    assert how == CUBLAS if tile is None else (how.block_n, how.block_k, how.num_warps) == tile


def test_a_wider_result_is_never_rounded_in_between() -> None:
    for m in (2, 64, 65, 4096):
        how = choose_launch(MatmulProblem(m, 4096, 4096, torch.bfloat16, widens=True), H200)
        assert how.kind == "tile"
