import torch

from lite_llama.ops.argmax import kernel

CASES = {
    "4096 bf16": lambda: kernel.argmax(torch.empty(4096, dtype=torch.bfloat16, device="meta")),
    "8x128256 fp32": lambda: kernel.argmax(torch.empty(8, 128256, device="meta")),
}
