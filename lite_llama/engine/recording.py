"""Launches recorded as a CUDA graph."""

from collections.abc import Callable
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor

from lite_llama.engine.config import EnginePlan

# A graph, and where it leaves its result.
Recorded = tuple[torch.cuda.CUDAGraph, Tensor]


def record(
    step: Callable[[], Tensor],
    pool: Any,
    plan: EnginePlan,
    warm_up: Callable[[], object] | None = None,
) -> Recorded:
    """Record what `step` launches, in the memory `pool` that graphs share.

    It runs once before, by `warm_up` if that is given.
    """
    # Kernels compile, and their scratch buffers appear, before the recording.
    stream = _side_stream(plan.device)
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        (warm_up or step)()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    # Between ranks NCCL has threads of its own, which look at the device meanwhile.
    mode = "global" if plan.tensor_parallel_size == 1 else "thread_local"
    with torch.cuda.graph(graph, pool=pool, capture_error_mode=mode):
        result = step()
    return graph, result


def destroy(recorded: dict[Any, Recorded]) -> None:
    """End these graphs, and forget them."""
    for graph, _ in recorded.values():
        graph.reset()
    recorded.clear()


def padded_sizes(most: int) -> list[int]:
    """Numbers of rows that are recorded: a step of fewer is padded to the next of them."""
    return [size for size in (1, 2, 4) if size < most] + [*range(8, most, 8), most]


def recorder(plan: EnginePlan) -> Callable[[Callable[[], Tensor]], Recorded]:
    """`record` into a pool of its own."""
    return partial(record, pool=torch.cuda.graph_pool_handle(), plan=plan)


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all recordings: cuBLAS keeps 32 MiB for each stream that it has ever worked on."""
    return torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
