"""swiglu: two reads and a write an element, from one fused buffer."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lite_llama.bench.harness import Case, random_inputs
from lite_llama.ops import swiglu


def cases(device: torch.device, dtype: torch.dtype) -> list[Case]:
    shapes = [(2, 3), (1, 8192), (512, 4096), (4096, 8192)]
    if device.type != "cuda":
        shapes = [(2, 3), (64, 576)]
    return [_case(device, dtype, rows, n) for rows, n in shapes]


def _plain(fused: Tensor) -> Tensor:
    gate, up = fused.chunk(2, dim=-1)
    return F.silu(gate) * up


def _case(device: torch.device, dtype: torch.dtype, rows: int, n: int) -> Case:
    return Case(
        name=f"{rows}x{n}",
        dtype=dtype,
        make_inputs=random_inputs(device, dtype, (rows, 2 * n)),
        contenders={"torch": _plain, "lite_llama": swiglu},
        num_bytes=3 * rows * n * dtype.itemsize,
        copies=True,
        compile_torch=n >= 4096,
    )
