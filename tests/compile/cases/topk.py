import torch

from lite_llama.ops.topk import kernel

CASES = {
    "8x128256 k1 fp32": lambda: kernel.topk(torch.empty(8, 128256, device="meta"), 1),
    "8x128256 k50 fp32": lambda: kernel.topk(torch.empty(8, 128256, device="meta"), 50),
    "8x128256 k256 bf16": lambda: kernel.topk(
        torch.empty(8, 128256, dtype=torch.bfloat16, device="meta"), 256
    ),
}
