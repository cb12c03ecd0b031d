"""The split of an SM's memory: which kernels are noted, and what the driver then says of them."""

import ctypes

import pytest
import torch

from lite_llama import ops
from lite_llama.errors import EngineError
from lite_llama.kernel_lib.carveout import launched_functions, set_carveout

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]


def carveout_of(function: int) -> int:
    found = ctypes.c_int()
    driver = ctypes.CDLL("libcuda.so.1")
    assert driver.cuFuncGetAttribute(ctypes.byref(found), 9, ctypes.c_void_p(function)) == 0
    return found.value


def test_kernels_launched_within_are_given_a_split_and_no_others() -> None:
    x = torch.randn(4, 64, device="cuda")
    with launched_functions() as before:
        ops.softmax(x)
    with launched_functions() as functions:
        ops.add(x, x)
        ops.add(x, x)
    assert len(before) == len(functions) == 1
    set_carveout(functions, 57)
    assert [carveout_of(one) for one in (*functions, *before)] == [57, -1]
    set_carveout(functions, -1)
    assert [carveout_of(one) for one in functions] == [-1]
    with pytest.raises(EngineError, match="carveout of 101 %: CUDA error 1"):
        set_carveout(functions, 101)
