"""rms_norm: a read and a write an element; with the residual added, two of each."""

import torch
import torch.nn.functional as F
from torch import Tensor

from lite_llama.bench.harness import Case, random_inputs
from lite_llama.ops import add_rms_norm, rms_norm

_EPS = 1e-5


def cases(device: torch.device, dtype: torch.dtype) -> list[Case]:
    if device.type != "cuda":
        return [_norm(device, dtype, 64, 576), _add_norm(device, dtype, 64, 576)]
    widths = [512 * i for i in (2, 5, 8, 16, 31)]
    return [
        _norm(device, dtype, 1, 2048),
        _norm(device, dtype, 128, 128),
        _norm(device, dtype, 512, 4096),
        *(_norm(device, dtype, 4096, n) for n in widths),
        _fp8(device),
        _add_norm(device, dtype, 1, 2048),
        _add_norm(device, dtype, 64, 4096),
        _add_norm(device, dtype, 4096, 4096),
    ]


def _norm(device: torch.device, dtype: torch.dtype, rows: int, n: int) -> Case:
    return Case(
        name=f"{rows}x{n}",
        dtype=dtype,
        make_inputs=random_inputs(device, dtype, (rows, n), (n,)),
        contenders={
            "torch": lambda x, weight: F.rms_norm(x, weight.shape, weight, _EPS),
            "lite_llama": lambda x, weight: rms_norm(x, weight, _EPS),
        },
        num_bytes=2 * rows * n * dtype.itemsize,
        copies=True,
        compile_torch=(rows, n) in ((1, 2048), (4096, 4096)),
    )


def _add_norm(device: torch.device, dtype: torch.dtype, rows: int, n: int) -> Case:
    def plain(x: Tensor, residual: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
        total = x + residual
        return F.rms_norm(total, weight.shape, weight, _EPS), total

    return Case(
        name=f"add {rows}x{n}",
        dtype=dtype,
        make_inputs=random_inputs(device, dtype, (rows, n), (rows, n), (n,)),
        contenders={
            "torch": plain,
            "lite_llama": lambda x, residual, weight: add_rms_norm(x, residual, weight, _EPS),
        },
        num_bytes=4 * rows * n * dtype.itemsize,
        copies=True,
        compile_torch=(rows, n) == (4096, 4096),
    )


def _fp8(device: torch.device) -> Case:
    shape, fp8 = (16, 4096, 512), torch.float8_e4m3fn

    def make_inputs() -> tuple[Tensor, Tensor]:
        return torch.randn(shape, device=device).to(fp8), torch.randn(512, device=device)

    return Case(
        name="16x4096x512",
        dtype=fp8,
        make_inputs=make_inputs,
        contenders={
            "torch": lambda x, weight: F.rms_norm(x.float(), (512,), weight, _EPS).to(fp8),
            "lite_llama": lambda x, weight: rms_norm(x, weight, _EPS),
        },
        num_bytes=2 * 16 * 4096 * 512,
        copies=True,
        compile_torch=True,
    )
