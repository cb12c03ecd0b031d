import torch

from lite_llama.ops.norm_gate_up import kernel

CASES = {
    "8192x2048 bf16": lambda: _norm_gate_up(8192, 2048),
    "1536x576 bf16": lambda: _norm_gate_up(1536, 576),
}


def _norm_gate_up(inter: int, hidden: int) -> None:
    def empty(*shape: int) -> torch.Tensor:
        return torch.empty(shape, dtype=torch.bfloat16, device="meta")

    kernel.norm_gate_up(
        empty(1, hidden), empty(hidden), empty(2 * inter, hidden), 1e-5, overlap=True
    )
