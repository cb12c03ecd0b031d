"""The processes that share one model, a rank each, and what they say to each other.

NCCL between GPUs; gloo on the CPU, which is where tests run. The group is torch's default one, so a
process is in one at a time. Nothing but tensors goes through it.
"""

import contextlib
import os
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lite_llama.models.shards import Share

# How long a rank waits for the others within a step. Kernels compile in the first ones; a server
# has its own, shorter watch over a step (`step_timeout`).
_TIMEOUT = timedelta(seconds=300)
_LEAVE_LIMIT_S = 5.0
# torch 2.13 gave all_gather_into_tensor this name.
_all_gather: Any = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


@dataclass(frozen=True)
class RankGroup:
    """One rank's end of the group. Every rank must call the same methods in the same order."""

    share: Share

    def join(self, store: Path, device: torch.device) -> None:
        """Meet the other ranks over the file `store`; on a GPU, `device` is this rank's."""
        on_gpu = device.type == "cuda"
        with _loopback_only():
            dist.init_process_group(
                "nccl" if on_gpu else "gloo",
                store=dist.FileStore(str(store), self.share.size),  # type: ignore[attr-defined]
                rank=self.share.rank,
                world_size=self.share.size,
                timeout=_TIMEOUT,
                device_id=device if on_gpu else None,
            )
            # Connections, and NCCL's buffers, are made now: before anyone counts free memory.
            first = torch.ones(1, device=device)
            self.sum(first)
            if int(first.item()) != self.share.size:
                raise AssertionError(f"the sum of {self.share.size} ones is {first.item()}")

    def leave(self, device: torch.device) -> None:
        """Leave the group, whatever has become of the others.

        CUDA graphs that hold an exchange must be gone by now: NCCL waits for the last of them
        (commDestroySync in its init.cc). If one is left, the group stays, and no other can be made.
        """
        if not dist.is_initialized():
            return
        if device.type != "cuda":
            dist.destroy_process_group()
            return
        # Not destroy_process_group, which waits for ranks that may be dead.
        abort = dist.distributed_c10d._abort_process_group
        leaving = threading.Thread(target=abort, name="leave ranks", daemon=True)
        leaving.start()
        leaving.join(_LEAVE_LIMIT_S)

    def sum(self, x: Tensor) -> Tensor:
        """x, now the sum of every rank's x (in place). A GPU's host does not wait."""
        dist.all_reduce(x)
        return x

    def gather_columns(self, x: Tensor) -> Tensor:
        """x [num_rows, columns] of every rank side by side: float32 [num_rows, size · columns]."""
        size = self.share.size
        num_rows, columns = x.shape
        gathered = torch.empty((size * num_rows, columns), dtype=x.dtype, device=x.device)
        _all_gather(gathered, x.contiguous())
        rows = torch.empty((num_rows, size, columns), dtype=torch.float32, device=x.device)
        rows.copy_(gathered.view(size, num_rows, columns).transpose(0, 1))
        return rows.view(num_rows, size * columns)

    def broadcast(self, x: Tensor) -> Tensor:
        """x, now that of rank 0 (in place). A GPU's host does not wait."""
        dist.broadcast(x, src=0)
        return x


def is_in_group() -> bool:
    """Whether this process is in a group already, this package's or its caller's."""
    return dist.is_initialized()


@contextlib.contextmanager
def _loopback_only() -> Iterator[None]:
    """Have gloo and NCCL, which read their interface from the environment alone, use loopback."""
    loopback = "lo" if sys.platform == "linux" else "lo0"
    names = ("GLOO_SOCKET_IFNAME", "NCCL_SOCKET_IFNAME")
    before = {name: os.environ.get(name) for name in names}  # noqa: TID251 - see above
    os.environ.update(dict.fromkeys(names, loopback))  # noqa: TID251
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]  # noqa: TID251
            else:
                os.environ[name] = value  # noqa: TID251
