"""Logits of a few rows of a step, recorded once per number of rows and replayed."""

import torch
from torch import Tensor

from lite_llama.engine.config import EnginePlan
from lite_llama.engine.recording import Recorded, destroy, padded_sizes, record
from lite_llama.models.decoder import Decoder


class HeadGraphs:
    """The recorded head of one model; `logits` as in `DecodeGraphs`."""

    def __init__(self, decoder: Decoder, plan: EnginePlan, logits: Tensor) -> None:
        shape = (plan.max_num_seqs, decoder.config.hidden_size)
        self._decoder = decoder
        self._plan = plan
        self._logits = logits
        self._rows = torch.zeros(shape, dtype=decoder.dtype, device=plan.device)
        self._sizes = padded_sizes(plan.max_num_seqs)
        self._recorded: dict[int, Recorded] = {}
        self._pool = None if plan.enforce_eager else torch.cuda.graph_pool_handle()

    def run(self, hidden: Tensor, rows: Tensor) -> Tensor:
        """Logits float32 [size >= n, vocab] of rows, int64 [n], of hidden [num_tokens, hidden]."""
        count = len(rows)
        size = next(size for size in self._sizes if size >= count)
        if not self._plan.enforce_eager and size not in self._recorded:
            self._recorded[size] = record(lambda: self._forward(size), self._pool, self._plan)
        torch.index_select(hidden, 0, rows, out=self._rows[:count])
        if self._plan.enforce_eager:
            return self._forward(size)
        graph, logits = self._recorded[size]
        graph.replay()
        return logits

    def _forward(self, size: int) -> Tensor:
        return self._logits[:size].copy_(self._decoder.head(self._rows[:size]))

    def close(self) -> None:
        """Destroy the graphs."""
        destroy(self._recorded)
