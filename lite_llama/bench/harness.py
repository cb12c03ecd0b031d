"""How operators are timed.

On a GPU: every contender's calls are captured in a CUDA graph over inputs and outputs that together
exceed the L2 cache (so each call finds its data in memory), the graphs are replayed in turn, and
median, p20 and p80 over the replays are kept. Results are compared before anything is timed. Roofs
(memory bandwidth, bf16 matrix rate) are measured in the same run. On a CPU the same cases are timed
with a clock.
"""

import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lite_llama.kernel_lib.gpu import gpu_spec

Contender = Callable[..., Any]

_MEASURE_S = 0.03
_MIN_SAMPLES, _MAX_SAMPLES = 10, 200
# Calls in one graph: enough that the events' resolution (0.5 µs) disappears.
_MIN_CALLS, _MAX_INPUT_SETS = 20, 24


@dataclass(frozen=True)
class Case:
    """One problem and the ways to solve it.

    `make_inputs` draws a new set of inputs; every contender is called with one set.
    `contenders` maps an engine's name ("lite_llama", "torch", "cublas", ...) to its function; the
    first is the reference the others' results are compared to. `compile_torch` adds torch.compile
    of the contender "torch" (seconds each: for few cases). `num_bytes` and `num_flops` are the
    least a call must move and compute. `limit` bounds the normalised mean squared error; None
    where results are not comparable (draws).
    """

    name: str
    dtype: torch.dtype
    make_inputs: Callable[[], tuple[Any, ...]]
    contenders: dict[str, Contender]
    num_bytes: int
    num_flops: int = 0
    compile_torch: bool = False
    limit: float | None = 1e-4
    in_place: bool = False  # the result is what has become of the inputs
    copies: bool = False  # writes about as much as it reads: judged by the roof of copying


@dataclass(frozen=True)
class Timing:
    """Microseconds of one call."""

    median_us: float
    p20_us: float
    p80_us: float


@dataclass(frozen=True)
class Machine:
    """The device under test and its measured roofs; of a CPU the first alone, the others are 0."""

    device: torch.device
    bytes_per_s: float = 0.0
    flops_per_s: float = 0.0
    copy_bytes_per_s: float = 0.0  # read and written
    roofs: dict[str, float] = field(default_factory=dict)

    @cached_property
    def l2_bytes(self) -> int:
        """Size of the cache that inputs must not fit in."""
        return gpu_spec(self.device).l2_bytes

    def roof_fraction(self, case: Case, median_us: float) -> float:
        """The least time a GPU needs for the case's bytes and FLOPs, over the time taken."""
        if not self.flops_per_s:  # on a CPU the inputs lie in its caches
            return 0.0
        bytes_per_s = self.copy_bytes_per_s if case.copies else self.bytes_per_s
        floor_s = max(case.num_bytes / bytes_per_s, case.num_flops / self.flops_per_s)
        return floor_s * 1e6 / median_us


class WrongResult(RuntimeError):
    """A contender's result differs from the reference's: its time would mean nothing."""


def random_inputs(
    device: torch.device, dtype: torch.dtype, *shapes: tuple[int, ...]
) -> Callable[[], tuple[Tensor, ...]]:
    """A `make_inputs` that draws one normal tensor a shape."""
    return lambda: tuple(torch.randn(shape, device=device, dtype=dtype) for shape in shapes)


def measure_machine(device: torch.device) -> Machine:
    """Measure the roofs: bandwidth of reading and of copying, and an 8192³ bf16 product.

    Buffers hold 2 GiB (or a sixteenth of a small GPU's memory); the best of torch's and our own
    streaming kernel counts (torch.copy_ alone reads a third less than an H200 has). Of a CPU, the
    bandwidth of reading 256 MiB with torch's threads.
    """
    if device.type != "cuda":
        return Machine(device, _cpu_bytes_per_s())
    from lite_llama.kernel_lib import bandwidth

    num_bytes = min(2**31, torch.cuda.get_device_properties(device).total_memory >> 18 << 14)
    source = torch.randn(num_bytes // 4, device=device)
    target, sums = torch.empty_like(source), torch.empty(num_bytes >> 14, device=device)
    a, b = (torch.randn(8192, 8192, device=device, dtype=torch.bfloat16) for _ in range(2))
    reads = (lambda: source.amax(), lambda: bandwidth.read(source, sums))
    copies = (lambda: target.copy_(source), lambda: bandwidth.copy(source, target))
    read, copy, product = (
        min(_time_graphs([_capture(call, [()], 4)], 4)[0].median_us for call in calls) * 1e-6
        for calls in (reads, copies, (lambda: a @ b,))
    )
    roofs = {
        "read_bytes_per_s": num_bytes / read,
        "copy_bytes_per_s": 2 * num_bytes / copy,
        "bf16_flops_per_s": 2 * 8192**3 / product,
    }
    copying = roofs["copy_bytes_per_s"]
    reading = max(roofs["read_bytes_per_s"], copying)
    return Machine(device, reading, roofs["bf16_flops_per_s"], copying, roofs)


def _cpu_bytes_per_s() -> float:
    source = torch.ones(2**26)
    times = []
    for _ in range(8):
        begin = time.perf_counter()
        source.sum()
        times.append(time.perf_counter() - begin)
    return source.numel() * 4 / min(times)


def run_case(case: Case, machine: Machine, profile: Path | None = None) -> dict[str, Timing]:
    """{engine: timing} of every contender, after their results have been compared.

    `profile`: a folder that receives one torch-profiler trace of the case.
    """
    contenders = dict(case.contenders)
    if case.compile_torch and machine.device.type == "cuda":
        torch.compiler.reset()
        contenders["torch.compile"] = torch.compile(contenders["torch"], dynamic=False)
    _check_results(case, contenders)
    if machine.device.type == "cuda":
        timings = _time_on_gpu(case, contenders, machine)
    else:
        timings = {name: _time_on_cpu(case, call) for name, call in contenders.items()}
    if profile is not None:
        _trace(case, contenders, profile)
    return timings


def _check_results(case: Case, contenders: dict[str, Contender]) -> None:
    if case.limit is None:
        return
    inputs = case.make_inputs()
    results = {name: _result(case, call, inputs) for name, call in contenders.items()}
    reference_name, *others = results
    for name in others:
        for got, want in zip(results[name], results[reference_name], strict=True):
            error = _nmse(got, want)
            if not error <= case.limit:
                raise WrongResult(
                    f"{case.name}: {name} differs from {reference_name}, NMSE {error:.3g}"
                )


def _result(case: Case, call: Contender, inputs: tuple[Any, ...]) -> list[Tensor]:
    copies = tuple(x.clone() if isinstance(x, Tensor) else x for x in inputs)
    out = call(*copies)
    if case.in_place:
        return [x for x in copies if isinstance(x, Tensor)]
    return [out] if isinstance(out, Tensor) else list(out)


def _nmse(got: Tensor, want: Tensor) -> float:
    got, want = got.double(), want.double()
    # Infinities on both sides (masked logits) are equal.
    error = torch.where(got == want, 0.0, got - want).square().sum()
    power = torch.where(want.isinf(), 0.0, want).square().sum()
    return float(error / power.clamp_min(1e-30))


def _time_on_cpu(case: Case, call: Contender) -> Timing:
    inputs = case.make_inputs()
    call(*inputs)
    samples: list[float] = []
    end = time.perf_counter() + _MEASURE_S
    while len(samples) < _MIN_SAMPLES or (
        time.perf_counter() < end and len(samples) < _MAX_SAMPLES
    ):
        begin = time.perf_counter()
        call(*inputs)
        samples.append((time.perf_counter() - begin) * 1e6)
    return _summary(samples)


def _time_on_gpu(
    case: Case, contenders: dict[str, Contender], machine: Machine
) -> dict[str, Timing]:
    wanted = 4 * machine.l2_bytes // max(case.num_bytes, 1) + 1
    inputs = [case.make_inputs() for _ in range(min(max(wanted, 2), _MAX_INPUT_SETS))]
    long_enough_alone = case.num_bytes >= 2**30 or case.num_flops >= 2**40
    num_calls = len(inputs) if long_enough_alone else max(_MIN_CALLS, len(inputs))
    graphs = [_capture(call, inputs, num_calls) for call in contenders.values()]
    timings = _time_graphs(graphs, num_calls)
    return dict(zip(contenders, timings, strict=True))


@dataclass(frozen=True)
class _Captured:
    graph: torch.cuda.CUDAGraph
    outputs: list[Any]  # kept, so that calls do not write one cached buffer over and over


def _capture(call: Contender, inputs: Sequence[tuple[Any, ...]], num_calls: int) -> _Captured:
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):  # compile, and let libraries allocate
        for _ in range(2):
            call(*inputs[0])
    torch.cuda.current_stream().wait_stream(stream)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    outputs: list[Any] = []
    with torch.cuda.graph(graph):
        for i in range(num_calls):
            outputs.append(call(*inputs[i % len(inputs)]))
            del outputs[: -len(inputs)]
    return _Captured(graph, outputs)


def _time_graphs(captured: Sequence[_Captured], num_calls: int) -> list[Timing]:
    first = [_replay_us(one) for one in captured for _ in range(2)]
    slowest_s = max(first) * 1e-6
    count = int(min(max(_MEASURE_S / slowest_s, _MIN_SAMPLES), _MAX_SAMPLES))
    samples: list[list[float]] = [[] for _ in captured]
    for _ in range(count):
        for one, collected in zip(captured, samples, strict=True):
            collected.append(_replay_us(one) / num_calls)
    return [_summary(collected) for collected in samples]


def _replay_us(captured: _Captured) -> float:
    begin = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    begin.record()
    captured.graph.replay()
    end.record()
    end.synchronize()
    elapsed_ms: float = begin.elapsed_time(end)
    return elapsed_ms * 1e3


def _summary(samples: list[float]) -> Timing:
    values = torch.tensor(samples, dtype=torch.float64)
    p20, median, p80 = values.quantile(torch.tensor([0.2, 0.5, 0.8], dtype=torch.float64)).tolist()
    return Timing(median_us=median, p20_us=p20, p80_us=p80)


def _trace(case: Case, contenders: dict[str, Contender], folder: Path) -> None:
    inputs = case.make_inputs()
    on_gpu = torch.cuda.is_available()
    with torch.profiler.profile() as profiler:
        for name, call in contenders.items():
            label = f"{case.name} {name}"
            nvtx = torch.cuda.nvtx.range(label) if on_gpu else nullcontext()
            with nvtx, torch.profiler.record_function(label):
                for _ in range(3):
                    call(*inputs)
                if on_gpu:
                    torch.cuda.synchronize()
    folder.mkdir(parents=True, exist_ok=True)
    profiler.export_chrome_trace(str(folder / f"{case.name.replace(' ', '_')}.json"))
