"""K1 and K3: outputs that begin as NaN are written whole, and nothing beside them is touched.

Without a GPU the operators' kernels run in the interpreter.
"""

from dataclasses import replace
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from torch.overrides import TorchFunctionMode

from lite_llama import ops
from lite_llama.kernel_lib import gpu
from tests.ops.smallest import CASES, LIMIT, Case, named, run_on, worst_error

GUARD_BYTES = 4096  # longer than any row of these cases, and keeps the alignment
POISON = 0xFF  # as every byte of a float it is NaN, in fp8 too; of an integer −1


class Guarded(TorchFunctionMode):
    """New tensors are poison between two guards; those on the CPU call themselves CUDA tensors."""

    def __init__(self) -> None:
        super().__init__()
        self._buffers: list[Tensor] = []

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func == Tensor.is_cuda.__get__:  # type: ignore[attr-defined]
            return True
        result = func(*args, **(kwargs or {}))
        if func in (torch.empty, torch.empty_like, Tensor.new_empty) and result.nbytes:
            return self._between_guards(result)
        return result

    def _between_guards(self, x: Tensor) -> Tensor:
        size = x.nbytes + 2 * GUARD_BYTES
        buffer = torch.full((size,), POISON, dtype=torch.uint8, device=x.device)
        self._buffers.append(buffer)
        return buffer[GUARD_BYTES:-GUARD_BYTES].view(x.dtype).view(x.shape)

    def assert_guards_untouched(self) -> None:
        assert self._buffers, "no tensor was made between guards"
        for buffer in self._buffers:
            for guard in (buffer[:GUARD_BYTES], buffer[-GUARD_BYTES:]):
                assert bool((guard == POISON).all()), "a kernel wrote beside its output"


@pytest.mark.parametrize("case", [pytest.param(case, id=name) for name, case in named(CASES)])
def test_outputs_are_written_whole_and_nothing_beside_them(
    device: torch.device, case: Case, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The interpreter has no dependent launches.
    monkeypatch.setattr(gpu, "INTERPRETER", replace(gpu.INTERPRETER, capability=(8, 9)))
    want = run_on(torch.device("cpu"), case)
    with Guarded() as guarded:
        got = run_on(device, case)
    assert worst_error(got, want) <= LIMIT
    guarded.assert_guards_untouched()


@triton.jit
def _fill(x_ptr, first, count, BLOCK: tl.constexpr):
    at = tl.arange(0, BLOCK)
    tl.store(x_ptr + first + at, 1.0, mask=at < count)


@pytest.mark.parametrize(("first", "count"), [(-1, 10), (0, 11)])
def test_one_value_beside_an_output_is_found(device: torch.device, first: int, count: int) -> None:
    with Guarded() as guarded:
        out = torch.empty(10, dtype=torch.bfloat16, device=device)
        assert bool(out.isnan().all())
        _fill[(1,)](out, first, count, BLOCK=16)
    with pytest.raises(AssertionError, match="wrote beside"):
        guarded.assert_guards_untouched()


def test_every_operator_has_a_smallest_case() -> None:
    assert set(CASES) == set(ops.__all__) - {"SamplingRows"}
