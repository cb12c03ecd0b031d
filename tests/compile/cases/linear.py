import torch

from lite_llama.kernel_lib import gpu
from lite_llama.kernel_lib.matmul import matmul
from lite_llama.kernel_lib.matmul_launch import MatmulProblem, choose_launch
from lite_llama.ops.linear import kernel

BF16, FP8 = torch.bfloat16, torch.float8_e4m3fn


def _linear(m: int, n: int, k: int, dtype: torch.dtype) -> None:
    kernel.linear(_new(m, k, dtype), _new(n, k, dtype), _new(1, n, dtype)[0])


def _widening(m: int) -> None:
    kernel.linear(_new(m, 2048, torch.float32), _new(4096, 2048, BF16), None)


def _fp8(m: int) -> None:
    # Ampere has no fp8 tensor cores: its answer is the reference's.
    if gpu.INTERPRETER.capability < (8, 9):
        _widening(8)
        return
    one = torch.empty(1, device="meta")
    kernel.linear_fp8(_new(m, 2048, FP8), _new(2048, 2048, FP8), one, one, None, BF16)


def _gated(m: int, dtype: torch.dtype) -> None:
    problem = MatmulProblem(m, 8192, 2048, dtype, gated=True)
    how = choose_launch(problem, gpu.INTERPRETER)
    matmul(how, _new(m, 2048, dtype), _new(2 * 8192, 2048, dtype), gated=True)


def _new(rows: int, columns: int, dtype: torch.dtype) -> torch.Tensor:
    return torch.empty(rows, columns, dtype=dtype, device="meta")


CASES = {
    "1x2048x2048 bf16": lambda: _linear(1, 2048, 2048, BF16),
    "1x128256x2048 bf16": lambda: _linear(1, 128256, 2048, BF16),
    "1x49152x576 fp32": lambda: _linear(1, 49152, 576, torch.float32),
    "1x2048x8192 bf16": lambda: _linear(1, 2048, 8192, BF16),
    "1x4096x14336 fp16": lambda: _linear(1, 4096, 14336, torch.float16),
    "2x3072x2048 bf16": lambda: _linear(2, 3072, 2048, BF16),
    "2x2048x8192 bf16": lambda: _linear(2, 2048, 8192, BF16),
    "8x128256x2048 bf16": lambda: _linear(8, 128256, 2048, BF16),
    "64x128256x2048 fp16": lambda: _linear(64, 128256, 2048, torch.float16),
    "16x4096x2048 bf16 to fp32": lambda: _widening(16),
    "100x4096x2048 bf16 to fp32": lambda: _widening(100),
    "fp8 16x2048x2048": lambda: _fp8(16),
    "fp8 500x2048x2048": lambda: _fp8(500),
    "fp8 1536x2048x2048": lambda: _fp8(1536),
    "gated 1x8192x2048 bf16": lambda: _gated(1, BF16),
    "gated 16x8192x2048 bf16": lambda: _gated(16, BF16),
    "gated 64x8192x2048 bf16": lambda: _gated(64, BF16),
    "gated 128x8192x2048 bf16": lambda: _gated(128, BF16),
    "gated 1024x8192x2048 bf16": lambda: _gated(1024, BF16),
    "gated 100x8192x2048 fp32": lambda: _gated(100, torch.float32),
}
