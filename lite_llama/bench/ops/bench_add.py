"""add: 2 reads and a write an element."""

import torch

from lite_llama.bench.harness import Case, random_inputs
from lite_llama.ops import add


def cases(device: torch.device, dtype: torch.dtype) -> list[Case]:
    shapes = [(2, 3), (512, 4096), (4096, 4096)] if device.type == "cuda" else [(2, 3), (64, 576)]
    return [
        Case(
            name=f"{rows}x{columns}",
            dtype=dtype,
            make_inputs=random_inputs(device, dtype, (rows, columns), (rows, columns)),
            contenders={"torch": torch.add, "lite_llama": add},
            num_bytes=3 * rows * columns * dtype.itemsize,
            copies=True,
            compile_torch=rows > 2,
        )
        for rows, columns in shapes
    ]
