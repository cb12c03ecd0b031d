"""fused_ffn on the GPU in two launches: gate, up and silu in one kernel, down in the other.

One launch would need every activation before the first row of down: a barrier over the grid, for
which the second launch is the cheaper one.
"""

import torch.nn.functional as F
from torch import Tensor

from lite_llama.kernel_lib.gpu import gpu_spec
from lite_llama.kernel_lib.matmul import matmul, tma_ready
from lite_llama.kernel_lib.matmul_launch import MatmulProblem, choose_launch


def fused_ffn(x: Tensor, gate_up_weight: Tensor, down_weight: Tensor) -> Tensor:
    x, gate_up_weight, down_weight = (
        t if t.stride(-1) == 1 else t.contiguous() for t in (x, gate_up_weight, down_weight)
    )
    m, gpu = x.shape[0], gpu_spec(x.device)
    hidden_size, intermediate_size = down_weight.shape
    gate_up = MatmulProblem(
        m=m,
        n=intermediate_size,
        k=hidden_size,
        dtype=x.dtype,
        gated=True,
        tma_ready=tma_ready(x, gate_up_weight),
    )
    activated = matmul(choose_launch(gate_up, gpu), x, gate_up_weight, gated=True)
    down = MatmulProblem(
        m=m,
        n=hidden_size,
        k=intermediate_size,
        dtype=x.dtype,
        tma_ready=tma_ready(activated, down_weight),
    )
    how = choose_launch(down, gpu)
    if how.kind == "cublas":
        return F.linear(activated, down_weight)
    return matmul(how, activated, down_weight)
