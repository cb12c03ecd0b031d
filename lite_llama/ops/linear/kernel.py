"""linear on the GPU: Triton where it streams or fuses better, cuBLAS where it multiplies better."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lite_llama.kernel_lib.gpu import gpu_spec
from lite_llama.kernel_lib.matmul import matmul, tma_ready
from lite_llama.kernel_lib.matmul_launch import MatmulProblem, choose_launch


def linear(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [m, k], weight [n, k] in any two float dtypes; the product runs in the weight's."""
    operand = _with_contiguous_rows(x.to(weight.dtype))
    weight = _with_contiguous_rows(weight)
    problem = MatmulProblem(
        m=x.shape[0],
        n=weight.shape[0],
        k=weight.shape[1],
        dtype=weight.dtype,
        tma_ready=tma_ready(operand, weight),
        widens=x.dtype.itemsize > weight.dtype.itemsize,
    )
    how = choose_launch(problem, gpu_spec(x.device))
    if how.kind == "cublas":
        y = F.linear(operand, weight, None if bias is None else bias.to(weight.dtype))
        return y.to(x.dtype)
    return matmul(how, operand, weight, bias, out_dtype=x.dtype)


def has_fp8(device: torch.device) -> bool:
    """Tensor cores read e4m3 from Ada (8.9) on."""
    return gpu_spec(device).capability >= (8, 9)


def linear_fp8(
    x: Tensor,
    weight: Tensor,
    x_scale: Tensor,
    weight_scale: Tensor,
    bias: Tensor | None,
    out_dtype: torch.dtype,
) -> Tensor:
    """x [m, k] and weight [n, k] in e4m3, one scale each."""
    x, weight = _with_contiguous_rows(x), _with_contiguous_rows(weight)
    problem = MatmulProblem(
        m=x.shape[0],
        n=weight.shape[0],
        k=weight.shape[1],
        dtype=weight.dtype,
        tma_ready=tma_ready(x, weight),
    )
    how = choose_launch(problem, gpu_spec(x.device))
    scales = (x_scale, weight_scale)
    if how.kind == "cublas":
        # What faster sums lose (our tiles lose it too) is below a narrow result's own rounding.
        fast = out_dtype != torch.float32
        y = torch._scaled_mm(x, weight.t(), *scales, out_dtype=out_dtype, use_fast_accum=fast)
        return y if bias is None else y.add_(bias)
    return matmul(how, x, weight, bias, scales=scales, out_dtype=out_dtype)


def _with_contiguous_rows(x: Tensor) -> Tensor:
    return x if x.stride(-1) == 1 else x.contiguous()
