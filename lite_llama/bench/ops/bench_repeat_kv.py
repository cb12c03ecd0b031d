"""repeat_kv: a read an element and as many writes as copies."""

import torch

from lite_llama.bench.harness import Case, random_inputs
from lite_llama.ops import repeat_kv


def cases(device: torch.device, dtype: torch.dtype) -> list[Case]:
    token_counts = [64, 4096] if device.type == "cuda" else [16]
    return [_case(device, dtype, tokens) for tokens in token_counts]


def _case(device: torch.device, dtype: torch.dtype, tokens: int) -> Case:
    return Case(
        name=f"{tokens} tokens 8 to 32 heads",
        dtype=dtype,
        make_inputs=random_inputs(device, dtype, (tokens, 8, 128)),
        contenders={
            # expand and copy: repeat_interleave is slower.
            "torch": lambda x: x[:, :, None].expand(-1, -1, 4, -1).reshape(tokens, 32, 128),
            "lite_llama": lambda x: repeat_kv(x, 4),
        },
        num_bytes=5 * tokens * 8 * 128 * dtype.itemsize,
        copies=True,
        compile_torch=tokens == 4096,
        limit=0.0,
    )
