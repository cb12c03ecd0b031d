"""linear: one row streams the weight, many rows multiply; fp8 beside bf16."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lite_llama.bench.harness import Case
from lite_llama.kernel_lib.gpu import gpu_spec
from lite_llama.kernel_lib.matmul_launch import MatmulProblem, choose_launch
from lite_llama.ops import linear, linear_fp8

# (rows, out_features, in_features): Llama-3.2-1B's and SmolLM2's products, and a classic one.
_ON_GPU = [
    *((1, n, k) for n, k in ((3072, 2048), (2048, 2048), (16384, 2048), (2048, 8192))),
    (1, 128256, 2048),
    (1, 49152, 576),
    *((m, 8192, 2048) for m in (2, 4, 8, 16, 32, 64, 128)),
    (512, 4096, 4096),
    *((n, n, n) for n in (256, 512, 1024, 2048, 3072, 4096)),
]
_ON_CPU = [(2, 3, 4), (16, 576, 576)]


def cases(device: torch.device, dtype: torch.dtype) -> list[Case]:
    sizes = _ON_GPU if device.type == "cuda" else _ON_CPU
    found = [_case(device, dtype, *size) for size in sizes]
    if device.type == "cuda" and dtype == torch.bfloat16:
        found += [_fp8_case(device, n) for n in (2048, 4096, 8192)]
    return found


def _engine_behind(device: torch.device, m: int, n: int, k: int, dtype: torch.dtype) -> str:
    """What `linear` calls for this product: "(vector)", "(tile)" or "(cublas)"."""
    return f"({choose_launch(MatmulProblem(m, n, k, dtype), gpu_spec(device)).kind})"


def _case(device: torch.device, dtype: torch.dtype, m: int, n: int, k: int) -> Case:
    def make_inputs() -> tuple[Tensor, ...]:
        x = torch.randn(m, k, device=device, dtype=dtype)
        weight = torch.randn(n, k, device=device, dtype=dtype) * k**-0.5
        return x, weight, torch.randn(n, device=device, dtype=dtype)

    return Case(
        name=f"{m}x{n}x{k} {_engine_behind(device, m, n, k, dtype)}",
        dtype=dtype,
        make_inputs=make_inputs,
        contenders={"cublas": F.linear, "lite_llama": linear},
        num_bytes=(m * k + n * k + m * n) * dtype.itemsize,
        num_flops=2 * m * n * k,
    )


def _fp8_case(device: torch.device, n: int) -> Case:
    def make_inputs() -> tuple[Tensor, ...]:
        x, weight = (
            torch.randn(n, n, device=device, dtype=torch.bfloat16).to(torch.float8_e4m3fn)
            for _ in range(2)
        )
        return x, weight, *(torch.full((1,), n**-0.25, device=device) for _ in range(2))

    def by_cublas(x: Tensor, weight: Tensor, x_scale: Tensor, weight_scale: Tensor) -> Tensor:
        return torch._scaled_mm(
            x,
            weight.t(),
            scale_a=x_scale,
            scale_b=weight_scale,
            out_dtype=torch.bfloat16,
            use_fast_accum=True,
        )

    return Case(
        name=f"{n}x{n}x{n} fp8 {_engine_behind(device, n, n, n, torch.float8_e4m3fn)}",
        dtype=torch.float8_e4m3fn,
        make_inputs=make_inputs,
        contenders={"cublas": by_cublas, "lite_llama": linear_fp8},
        num_bytes=2 * n * n + 2 * n * n,
        num_flops=2 * n**3,
    )
