"""The graphs of ranks that share a model, without graphs: what a replay would do is done anew.

`main` is a rank's process that has them (see `lite_llama.engine.tp_worker`).
"""

from typing import Any

import torch
from torch import Tensor

from lite_llama.engine import tp_worker
from lite_llama.engine.cuda_graphs import SharedGraphs
from lite_llama.engine.device_table import DeviceTable
from lite_llama.engine.graph_draw import GraphDraw
from lite_llama.engine.runner import Runner
from lite_llama.ops.advance_greedy.op import NUM_FIELDS


class Replay:
    """A recorded step; it leaves its result where its first one was."""

    def __init__(self, graphs: SharedGraphs, size: int, draw: GraphDraw | None) -> None:
        self._graphs, self._size, self._draw = graphs, size, draw
        self.result = self._compute()

    def _compute(self) -> Tensor:
        with torch.inference_mode():
            return self._graphs.forward(self._size, None, self._draw)

    def replay(self) -> None:
        result = self._compute()
        if result is not self.result:
            with torch.inference_mode():
                self.result.copy_(result)

    def reset(self) -> None:
        pass


class HostSharedGraphs(SharedGraphs):
    """`SharedGraphs` on the CPU; `log` says where the tokens of each launch came from."""

    def __init__(self, runner: Runner, workers: Any = None) -> None:
        rows = runner.plan.max_num_seqs
        self._decoder, self._kv_cache, self._plan = runner.decoder, runner.kv_cache, runner.plan
        self._workers = workers
        self._sizes = [1, 2, 4, rows]
        self._launches = dict.fromkeys(self._sizes)
        self.fields = torch.zeros((NUM_FIELDS, rows), dtype=torch.int64)
        self.logits = torch.zeros(rows, runner.decoder.config.vocab_size)
        self.table = DeviceTable(rows, runner.plan.max_blocks_per_seq, self._plan.device)
        self._staging = torch.zeros((2, NUM_FIELDS - 1, rows), dtype=torch.int64)
        self._told = torch.zeros((2, rows), dtype=torch.int64)
        self._turn, self._next = 0, None
        self._sent, self._rows = [], []
        self._recorded, self._drawn = {}, None
        self.log: list[str] = []

    def record(self, size: int, launches: Any, draw: GraphDraw | None = None) -> Any:  # noqa: ARG002
        self._empty(size)
        graph = Replay(self, size, draw)
        return graph, graph.result

    def launch(
        self, requests: Any, positions: Any, token_ids: Any, draw: GraphDraw | None = None
    ) -> Tensor:
        if isinstance(token_ids, Tensor):
            self.log.append("drawn in the graph" if token_ids is self._drawn else "unread")
        else:
            self.log.append("read")
        return super().launch(requests, positions, token_ids, draw)


def without_pinning() -> None:
    """Memory is pinned for a GPU's sake only."""
    torch.Tensor.pin_memory = lambda tensor, *_: tensor  # type: ignore[method-assign, assignment, misc]


def main(fd: int) -> None:
    without_pinning()
    init = Runner.__init__

    def with_graphs(runner: Runner, *arguments: Any, **options: Any) -> None:
        init(runner, *arguments, **options)
        runner.graphs = HostSharedGraphs(runner)

    Runner.__init__ = with_graphs  # type: ignore[method-assign]
    tp_worker.main(fd)
