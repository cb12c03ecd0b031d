"""argmax: one read an element."""

import torch

from lite_llama.bench.harness import Case, random_inputs
from lite_llama.ops import argmax


def cases(device: torch.device, dtype: torch.dtype) -> list[Case]:
    on_gpu = device.type == "cuda"
    shapes = [(1, 4096), (8, 128256), (256, 128256)] if on_gpu else [(1, 4096), (8, 4096)]
    return [
        Case(
            name=f"{rows}x{columns}",
            dtype=dtype,
            make_inputs=random_inputs(device, dtype, (rows, columns)),
            contenders={
                "torch": lambda x: x.max(dim=-1).values,
                "lite_llama": lambda x: argmax(x)[0],
            },
            num_bytes=rows * columns * dtype.itemsize,
            compile_torch=rows <= 8,
        )
        for rows, columns in shapes
    ]
