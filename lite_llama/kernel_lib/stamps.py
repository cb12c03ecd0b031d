"""When a chain's programs begin to wait and go on, by time stamps that they take themselves.

A profiler shows neither the wait of a dependent launch nor, where CUPTI is missing, any kernel. So
for `lite_llama.bench.timeline`, and before any kernel compiles, the functions here take the place
of names that kernel modules import. What is in the way of the next load of a program must be short:
a stamp's place follows from its time, so no counter is asked, and nothing waits for the store.
"""

from collections.abc import Iterable
from types import ModuleType

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_wait, globaltimer

# Two launches never go on within 256 ns: a store and a kernel boundary lie between them. 33 ms are
# kept, older stamps written over; 128 programs of each launch, or all if it has fewer.
TICK_BITS = tl.constexpr(8)
NUM_TICKS = tl.constexpr(1 << 17)
NUM_PLACES = tl.constexpr(128)
_ADDRESS = tl.constexpr(0)  # of the buffer, int64 [NUM_TICKS, NUM_PLACES, 2]


@triton.jit
def _store(before, after):
    """Keep one program's stamp, in nanoseconds, if it is one of those that are kept."""
    count = tl.num_programs(0) * tl.num_programs(1) * tl.num_programs(2)
    program = tl.program_id(1) + tl.num_programs(1) * tl.program_id(2)
    program = tl.program_id(0) + tl.num_programs(0) * program
    every = tl.cdiv(count, NUM_PLACES)
    line = (after >> TICK_BITS) & (NUM_TICKS - 1)
    # In this way, as Gluon makes no number without a layout.
    address = program.to(tl.int64) * 0 + _ADDRESS
    place_ptr = address.to(tl.pointer_type(tl.int64))
    place_ptr += (line * NUM_PLACES + program // every) * 2
    kept = program % every == 0
    tl.store(place_ptr, after, mask=kept)
    tl.store(place_ptr + 1, ((after - before) << 32) | count, mask=kept)


@triton.jit
def stamped_wait():
    """`gdc_wait`, with a stamp of when it began and ended."""
    before = globaltimer()
    gdc_wait()
    after = globaltimer()
    _store(before, after)


def take_stamps(modules: Iterable[ModuleType], device: torch.device) -> Tensor:
    """Put the stamping wait into kernel modules, of which no kernel may have compiled yet.

    Returns the buffer that `read_stamps` reads; it must live as long as those kernels run.
    """
    buffer = torch.zeros((NUM_TICKS.value, NUM_PLACES.value, 2), dtype=torch.int64, device=device)
    _ADDRESS.value = buffer.data_ptr()
    for module in modules:
        module.gdc_wait = stamped_wait  # type: ignore[attr-defined]
    return buffer


def read_stamps(buffer: Tensor) -> Tensor:
    """int64 [stamps, 4] on the CPU: programs of the launch, program, began to wait, went on (ns).

    In the order in which they went on; no older than what the buffer holds without gaps.
    """
    stamps = buffer.view(-1, 2)
    written = torch.nonzero(stamps[:, 0])[:, 0]
    after, packed = stamps[written].unbind(1)
    if not len(after):
        return torch.empty((0, 4), dtype=torch.int64)
    count = packed & 0xFFFFFFFF
    every = (count + NUM_PLACES.value - 1) // NUM_PLACES.value
    program = written % NUM_PLACES.value * every
    table = torch.stack((count, program, after - (packed >> 32), after), 1)
    oldest = after.max() - (NUM_TICKS.value << TICK_BITS.value)
    table = table[after > oldest]
    return table[table[:, 3].argsort()].cpu()
