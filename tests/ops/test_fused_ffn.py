import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lite_llama.errors import OperatorError
from lite_llama.ops import fused_ffn
from lite_llama.ops.fused_ffn import kernel, reference
from tests.ops.compare import (
    DTYPES,
    assert_close_to_reference,
    nmse,
    non_contiguous,
    poison_new_outputs,
    random,
)

ON_GPU = torch.cuda.is_available()
needs_gpu = pytest.mark.skipif(not ON_GPU, reason="no GPU: too many programs to interpret")
# Two products and the rounding of the activation between them.
TWO_GEMMS = {torch.float32: 2e-11, torch.float16: 6e-7, torch.bfloat16: 2e-5}


def problem(
    m: int, hidden: int, inter: int, dtype: torch.dtype, device: torch.device
) -> tuple[Tensor, Tensor, Tensor]:
    return (
        random(m, hidden, dtype=dtype, device=device),
        random(2 * inter, hidden, dtype=dtype, device=device, scale=2 * hidden**-0.5),
        random(hidden, inter, dtype=dtype, device=device, scale=inter**-0.5),
    )


def want(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    gate, up = F.linear(x.double(), gate_up.double()).chunk(2, dim=-1)
    return F.linear(F.silu(gate) * up, down.double())


def by_torch(x: Tensor, gate_up: Tensor, down: Tensor) -> Tensor:
    gate, up = F.linear(x, gate_up).chunk(2, dim=-1)
    return F.linear(F.silu(gate) * up, down)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("m", [1, 4, 33, 128])
@pytest.mark.parametrize(("hidden", "inter"), [(64, 128), (48, 72)])
def test_small_blocks_in_every_dtype(
    device: torch.device,
    dtype: torch.dtype,
    m: int,
    hidden: int,
    inter: int,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tensors = problem(m, hidden, inter, dtype, device)
    plain = by_torch(*tensors)
    poison_new_outputs(monkeypatch)
    assert_close_to_reference(kernel.fused_ffn(*tensors), want(*tensors), TWO_GEMMS, plain)


@needs_gpu
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("m", [1, 2, 8, 64, 65, 1000])
@pytest.mark.parametrize(("hidden", "inter"), [(2048, 8192), (1536, 8960)])
def test_blocks_of_known_models(
    device: torch.device, dtype: torch.dtype, m: int, hidden: int, inter: int
) -> None:
    tensors = problem(m, hidden, inter, dtype, device)
    got = kernel.fused_ffn(*tensors)
    assert_close_to_reference(got, want(*tensors), TWO_GEMMS, by_torch(*tensors))


def test_strided_inputs_give_the_same_result(device: torch.device) -> None:
    tensors = problem(3, 48, 72, torch.bfloat16, device)
    strided = tuple(non_contiguous(t) for t in tensors)
    assert_close_to_reference(kernel.fused_ffn(*strided), want(*tensors), TWO_GEMMS)


def test_the_reference_rounds_only_the_activation() -> None:
    tensors = problem(3, 48, 72, torch.float32, torch.device("cpu"))
    assert nmse(reference.fused_ffn(*tensors), want(*tensors)) < 1e-11
    assert torch.equal(fused_ffn(*tensors), reference.fused_ffn(*tensors))


def test_no_tokens_give_no_result(device: torch.device) -> None:
    tensors = problem(0, 48, 72, torch.float16, device)
    assert fused_ffn(*tensors).shape == (0, 48)


def test_calls_against_the_contract_name_the_argument(device: torch.device) -> None:
    x, gate_up, down = problem(2, 16, 32, torch.float32, device)
    with pytest.raises(OperatorError, match=r"x has shape \(2, 8\), expected 16 columns"):
        fused_ffn(x[:, :8], gate_up, down)
    with pytest.raises(
        OperatorError, match=r"gate_up_weight has shape \(32, 16\), expected \(64, 16\)"
    ):
        fused_ffn(x, gate_up[:32], down)
    with pytest.raises(OperatorError, match=r"down_weight has dtype torch.float16"):
        fused_ffn(x, gate_up, down.half())
