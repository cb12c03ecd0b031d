import pytest
import torch
import torch.nn.functional as F

from lite_llama.errors import OperatorError
from lite_llama.ops import swiglu
from lite_llama.ops.swiglu import kernel
from tests.ops.compare import (
    DTYPES,
    assert_close_to_reference,
    cases,
    non_contiguous,
    poison_new_outputs,
    random,
    same_bits,
)
from tests.ops.tolerances import ROWWISE


@pytest.mark.parametrize(
    ("shape", "dtype"), cases([(2, 3), (2, 2, 576)], [(1, 1), (3, 2880), (2, 5000)])
)
def test_kernel_gates_as_the_definition_says(
    device: torch.device,
    dtype: torch.dtype,
    shape: tuple[int, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    gate, up = (random(*shape, dtype=dtype, device=device, scale=3.0) for _ in range(2))
    want, plain = F.silu(gate.double()) * up.double(), F.silu(gate) * up
    poison_new_outputs(monkeypatch)
    assert_close_to_reference(kernel.swiglu(gate, up), want, ROWWISE, plain)


@pytest.mark.parametrize("dtype", DTYPES)
def test_halves_of_one_buffer_give_the_bits_of_two_tensors(
    device: torch.device, dtype: torch.dtype
) -> None:
    fused = random(3, 1152, dtype=dtype, device=device)
    gate, up = fused.chunk(2, dim=-1)
    want = kernel.swiglu(gate.contiguous(), up.contiguous())
    assert same_bits(kernel.swiglu(gate, up), want)
    assert same_bits(kernel.swiglu(non_contiguous(gate)[1:2], up[1:2]), want[1:2])


def test_large_gates_saturate_instead_of_overflowing(device: torch.device) -> None:
    gate = torch.tensor([-1e4, -100.0, 0.0, 100.0, 1e4], device=device)
    got = kernel.swiglu(gate, torch.ones(5, device=device))
    torch.testing.assert_close(got, F.silu(gate), rtol=1e-6, atol=1e-30)


def test_operator_takes_one_buffer_or_two(device: torch.device) -> None:
    fused = random(2, 8, dtype=torch.float32, device=device)
    torch.testing.assert_close(swiglu(fused), swiglu(fused[:, :4], fused[:, 4:]))
    assert swiglu(torch.empty(0, 8, device=device)).shape == (0, 4)


def test_calls_against_the_contract_name_the_argument(device: torch.device) -> None:
    x = torch.zeros(2, 3, device=device)
    with pytest.raises(OperatorError, match="expected an even last dimension"):
        swiglu(x)
    with pytest.raises(OperatorError, match=r"up has shape \(2, 2\)"):
        swiglu(x, x[:, :2])
    with pytest.raises(OperatorError, match=r"gate has dtype torch.int64"):
        swiglu(x.long(), x.long())
