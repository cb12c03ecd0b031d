"""fused_ffn: the feed-forward blocks of Llama-3.2-1B and Qwen2-1.5B."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lite_llama.bench.harness import Case
from lite_llama.kernel_lib.gpu import gpu_spec
from lite_llama.kernel_lib.matmul_launch import MatmulProblem, choose_launch
from lite_llama.ops import fused_ffn

_BLOCKS = ((2048, 8192), (1536, 8960))


def cases(device: torch.device, dtype: torch.dtype) -> list[Case]:
    if device.type != "cuda":
        return [_case(device, dtype, 4, 64, 128)]
    return [
        _case(device, dtype, m, hidden, inter)
        for hidden, inter in _BLOCKS
        for m in (1, 2, 4, 8, 16, 32, 64, 512, 2048)
        if dtype.itemsize == 2 or m <= 64
    ]


def _case(device: torch.device, dtype: torch.dtype, m: int, hidden: int, inter: int) -> Case:
    def make_inputs() -> tuple[Tensor, ...]:
        return (
            torch.randn(m, hidden, device=device, dtype=dtype),
            torch.randn(2 * inter, hidden, device=device, dtype=dtype) * hidden**-0.5,
            torch.randn(hidden, inter, device=device, dtype=dtype) * inter**-0.5,
        )

    def by_torch(x: Tensor, gate_up_weight: Tensor, down_weight: Tensor) -> Tensor:
        gate, up = F.linear(x, gate_up_weight).chunk(2, dim=-1)
        return F.linear(F.silu(gate) * up, down_weight)

    down = choose_launch(MatmulProblem(m, hidden, inter, dtype), gpu_spec(device))
    return Case(
        name=f"{m}x{hidden}x{inter} (down: {down.kind})",
        dtype=dtype,
        make_inputs=make_inputs,
        contenders={"torch": by_torch, "lite_llama": fused_ffn},
        num_bytes=(2 * m * hidden + 3 * hidden * inter) * dtype.itemsize,
        num_flops=6 * m * hidden * inter,
        compile_torch=m == 1 and hidden == 2048,
    )
