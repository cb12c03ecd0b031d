"""How the SMs split their memory between shared memory and L1 cache while kernels run.

The driver chooses for each kernel, by what its programs take of shared memory. An SM changes the
split only when nothing runs on it, so of kernels that differ in it none starts beside the one
before, dependent launch or not. Kernels that are to overlap are given one split.
"""

import ctypes
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

from lite_llama.errors import EngineError

_PREFERRED_CARVEOUT = 9  # CU_FUNC_ATTRIBUTE_PREFERRED_SHARED_MEMORY_CARVEOUT, CUDA driver API


@contextmanager
def launched_functions() -> Iterator[set[int]]:
    """The driver's handles (CUfunction) of the Triton kernels that are launched within."""
    from triton import knobs  # type: ignore[import-untyped,unused-ignore]

    functions: set[int] = set()

    def note(metadata: Any) -> None:  # a triton.compiler.LazyDict
        functions.add(metadata.get()["function"])

    knobs.runtime.launch_enter_hook.add(note)
    try:
        yield functions
    finally:
        knobs.runtime.launch_enter_hook.remove(note)


def set_carveout(functions: Iterable[int], percent: int) -> None:
    """Ask for shared memory of `percent` of what an SM can have, in later launches and recordings.

    -1: as the driver chooses. More than a kernel's programs need leaves the L1 cache less.
    """
    driver = ctypes.CDLL("libcuda.so.1")
    for function in functions:
        code = driver.cuFuncSetAttribute(
            ctypes.c_void_p(function), ctypes.c_int(_PREFERRED_CARVEOUT), ctypes.c_int(percent)
        )
        if code != 0:
            raise EngineError(
                f"the driver refuses a shared-memory carveout of {percent} %: CUDA error {code}"
            )
