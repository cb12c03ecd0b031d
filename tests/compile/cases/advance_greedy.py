import torch

from lite_llama.ops.advance_greedy import kernel

CASES = {
    "1x128256 fp32": lambda: _advance(1, torch.float32),
    "8x128256 bf16": lambda: _advance(8, torch.bfloat16),
    "8 drawn": lambda: kernel.advance_drawn(
        torch.empty(8, dtype=torch.int64, device="meta"), *_fields(8)
    ),
}


def _advance(num_rows: int, dtype: torch.dtype) -> None:
    logits = torch.empty(num_rows, 128256, dtype=dtype, device="meta")
    kernel.advance_greedy(logits, *_fields(num_rows))


def _fields(num_rows: int) -> tuple[torch.Tensor, torch.Tensor]:
    fields, told = (
        torch.empty(count, num_rows, dtype=torch.int64, device="meta") for count in (5, 2)
    )
    return fields, told
