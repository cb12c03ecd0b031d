import torch

from lite_llama.ops.sample import kernel

CASES = {
    "8x128256 fp32": lambda: _sample(8, 128256),
    "penalties 8x128256": lambda: kernel.apply_penalties(
        _meta(8, 128256),
        _meta(8, 128256, dtype=torch.bool),
        _meta(8, 128256, dtype=torch.int32),
        _meta(8),
        _meta(8),
        _meta(8),
    ),
    "logprobs 8x128256 bf16": lambda: kernel.token_logprobs(
        _meta(8, 128256, dtype=torch.bfloat16), _meta(8, 20, dtype=torch.int64)
    ),
}


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _sample(num_rows: int, vocab: int) -> None:
    kernel.sample(
        _meta(num_rows, vocab),
        temperature=_meta(num_rows),
        top_k=_meta(num_rows, dtype=torch.int32),
        top_p=_meta(num_rows),
        min_p=_meta(num_rows),
        seeds=_meta(num_rows, dtype=torch.int64),
        positions=_meta(num_rows, dtype=torch.int64),
        any_top_k=True,
        any_top_p=True,
    )
