import torch

from lite_llama.ops.sample import kernel

CASES = {
    "8x128256 fp32": lambda: _sample(8, 128256),
    # Fewer groups than the kernel would look at closely, with either cut alone.
    "3x2000 bf16 top_k": lambda: _sample(3, 2000, torch.bfloat16, any_top_p=False),
    "3x2000 bf16 top_p": lambda: _sample(3, 2000, torch.bfloat16, any_top_k=False),
    "3x2000 fp32": lambda: _sample(3, 2000),
    "penalties 8x128256": lambda: kernel.apply_penalties(
        _meta(8, 128256),
        _meta(8, 128256, dtype=torch.bool),
        _meta(8, 128256, dtype=torch.int32),
        _meta(8),
        _meta(8),
        _meta(8),
    ),
    "masks 8x128256": lambda: kernel.apply_masks(
        _meta(8, 128256), _meta(8, 4008, dtype=torch.int32)
    ),
    "logprobs 8x128256 bf16": lambda: kernel.token_logprobs(
        _meta(8, 128256, dtype=torch.bfloat16), _meta(8, 20, dtype=torch.int64)
    ),
}


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _sample(
    num_rows: int,
    vocab: int,
    dtype: torch.dtype = torch.float32,
    *,
    any_top_k: bool = True,
    any_top_p: bool = True,
) -> None:
    kernel.sample(
        _meta(num_rows, vocab, dtype=dtype),
        temperature=_meta(num_rows),
        top_k=_meta(num_rows, dtype=torch.int32),
        top_p=_meta(num_rows),
        min_p=_meta(num_rows),
        seeds=_meta(num_rows, dtype=torch.int64),
        positions=_meta(num_rows, dtype=torch.int64),
        any_top_k=any_top_k,
        any_top_p=any_top_p,
    )
