"""Chains timed whole, as recorded graphs replayed in turn, after their results were compared."""

import hashlib
import math
import statistics
from collections.abc import Callable, Hashable, Mapping, Sequence
from operator import truediv
from typing import TypeVar

import torch
from torch import Tensor

from lite_llama.engine.cuda_graphs import DecodeGraphs
from lite_llama.engine.engine import Engine
from lite_llama.errors import EngineError
from lite_llama.models.chain_launches import ChainLaunches
from lite_llama.tuning.search import Rejected, Timing
from lite_llama.tuning.space import arithmetic

# A candidate this much slower after the first round is given up.
_HOPELESS = 1.05
_ROUNDS, _LONGER_ROUNDS = 5, 15
# Replays of a round: the events' resolution (0.5 µs) disappears in them.
_ROUND_MS = 3.0
# How much further from the first chain than the separate operators a candidate's result may be.
_TOLERANCE = 4.0
_LEAST_ERROR = 1e-10

Sample = Callable[[], list[float]]
Result = TypeVar("Result")
Recorded = tuple[torch.cuda.CUDAGraph, Tensor]


def compare(candidate: Sample, incumbent: Sample, rounds: int, *, may_stop: bool) -> Timing:
    """Time the two in turn; a sample is milliseconds a step, over a few replays, at each context.

    The ratio of a round is the mean of those of its contexts, of which the first counts as much as
    all others. The one that goes first alternates, so that a drifting clock favours neither. With
    `may_stop` a candidate that is more than 5 % slower in the first round is given up.
    """
    times, ratios = [], []
    for index in range(rounds):
        if index % 2:
            other, own = incumbent(), candidate()
        else:
            own, other = candidate(), incumbent()
        times.append(own[0])
        weights = [max(1, len(own) - 1), *[1] * (len(own) - 1)]
        ratios.append(statistics.fmean(map(truediv, own, other), weights))
        if may_stop and index == 0 and ratios[0] > _HOPELESS:
            return Timing(times[0], ratios[0], ratios[0], ratios[0], stopped=True)
    ratios.sort()
    fifth = len(ratios) // 5
    return Timing(
        statistics.median(times), statistics.median(ratios), ratios[fifth], ratios[-1 - fifth]
    )


class ChainMeter:
    """A `Measure` on the engine's GPU, for steps of `num_seqs` sequences.

    `contexts`: keys of each sequence. Products are timed at the first of them; what changes
    attention or the carveout is timed at all. `refused`: chains known not to compile.
    """

    def __init__(
        self,
        engine: Engine,
        num_seqs: int,
        contexts: Sequence[int],
        refused: Mapping[ChainLaunches, str],
    ) -> None:
        if engine.runner.graphs is None:
            raise AssertionError("the tuner's engine records graphs")
        self._graphs: DecodeGraphs = engine.runner.graphs
        self._cache = engine.runner.kv_cache
        self._num_seqs = num_seqs
        self._refused = refused
        self._inputs = _inputs(engine.plan.block_size, self._graphs, num_seqs, contexts)
        # Other tokens at the same places: a kernel that reads what the step before left shows.
        self._others = self._inputs[0].clone()
        self._others[0] += 1
        for layer in self._cache.layers:
            layer.k.normal_()
            layer.v.normal_()
        self._digests: dict[Hashable, bytes] = {}
        self._expected: list[Tensor] = []
        self._limits: list[float] = []
        self._kept: tuple[ChainLaunches, Recorded] | None = None

    @torch.inference_mode()
    def calibrate(self, start: ChainLaunches) -> None:
        """Take the results of `start` as right, once they agree with the separate operators.

        How far the two are apart, which is rounding, is the measure of what others may differ.
        """
        try:
            separate, _ = self._steps(self._record(None))
            self._expected = self._results(self._record(start))
            self._digests[arithmetic(start)] = _digest(self._expected)
        except Rejected as reason:
            raise EngineError(f"the chain to start from {reason}; nothing can be tuned") from None
        pairs = zip(self._expected, separate, strict=True)
        errors = [_nmse(got, want) for got, want in pairs]
        if not max(errors) < 1e-2:
            raise EngineError(
                f"the chain's results differ from the separate operators', NMSE {max(errors):.3g}, "
                "limit 0.01; nothing can be tuned"
            )
        self._limits = [max(_TOLERANCE * error, _LEAST_ERROR) for error in errors]

    @torch.inference_mode()
    def __call__(
        self, candidate: ChainLaunches, incumbent: ChainLaunches, *, longer: bool
    ) -> Timing:
        """See `search.Measure`."""
        if candidate in self._refused:
            raise Rejected(self._refused[candidate])
        if self._kept is None or self._kept[0] != incumbent:
            self._kept = incumbent, self._record(incumbent)
        against, recorded = self._kept[1], self._record(candidate)
        self._check(candidate, self._results(recorded))
        same = _depends_on_context(candidate) == _depends_on_context(incumbent)
        inputs = self._inputs[:1] if same else self._inputs
        return compare(
            lambda: self._sample(recorded, inputs),
            lambda: self._sample(against, inputs),
            _LONGER_ROUNDS if longer else _ROUNDS,
            may_stop=not longer,
        )

    def _record(self, chain: ChainLaunches | None) -> Recorded:
        return attempt(lambda: self._graphs.record(self._num_seqs, chain))

    def _sample(self, recorded: Recorded, inputs: Sequence[Tensor]) -> list[float]:
        """Milliseconds a step with each of these inputs."""
        graph, _ = recorded
        found = []
        for fields in inputs:
            self._graphs.fields.copy_(fields)
            replays = max(3, math.ceil(_ROUND_MS / _timed(graph, 1)))
            found.append(_timed(graph, replays))
        return found

    def _results(self, recorded: Recorded) -> list[Tensor]:
        first, again = self._steps(recorded)
        if not all(map(torch.equal, first, again)):
            raise Rejected("gives other results when its steps are repeated")
        return first

    def _steps(self, recorded: Recorded) -> tuple[list[Tensor], list[Tensor]]:
        """Logits and written keys and values of two steps in turn, twice, back to back."""
        graph, logits = recorded
        results: tuple[list[Tensor], list[Tensor]] = [], []
        for found in results:
            for fields in (self._inputs[0], self._others):
                self._graphs.fields.copy_(fields)
                graph.replay()
                found += [logits.clone(), self._written(fields[2, : self._num_seqs])]
        return results

    def _written(self, slots: Tensor) -> Tensor:
        both = [x for layer in self._cache.layers for x in (layer.k, layer.v)]
        return torch.stack([x.flatten(0, 1)[slots] for x in both])

    def _check(self, chain: ChainLaunches, results: list[Tensor]) -> None:
        """Bitwise equal to chains of the same arithmetic, and near the first one."""
        for got, want, limit in zip(results, self._expected, self._limits, strict=True):
            error = _nmse(got, want)
            if not error <= limit:
                raise Rejected(f"wrong result: NMSE {error:.3g}, limit {limit:.3g}")
        digest = _digest(results)
        if self._digests.setdefault(arithmetic(chain), digest) != digest:
            raise Rejected("wrong result: not bit for bit that of the same tiles in another mode")


def _depends_on_context(chain: ChainLaunches) -> Hashable:
    return chain.attention, chain.attention_overlap, chain.carveout


def attempt(
    step: Callable[[], Result], wait: Callable[[], None] = torch.cuda.synchronize
) -> Result:
    """Compile and launch something: Rejected if that fails, EngineError if it breaks the GPU."""
    try:
        result = step()
        wait()
    except Exception as error:
        lines = str(error).strip().splitlines()
        reason = f"{type(error).__name__}: {lines[0] if lines else ''}"[:120]
        try:
            wait()
        except RuntimeError:
            raise EngineError(f"the GPU faulted: {reason}; run again to go on") from error
        raise Rejected(reason) from error
    return result


def _inputs(
    block_size: int, graphs: DecodeGraphs, num_seqs: int, contexts: Sequence[int]
) -> list[Tensor]:
    """The fields of a step in which each sequence has so many keys; fills the block table."""
    width = -(-max(contexts) // block_size)
    table = torch.arange(num_seqs * width, dtype=torch.int32).view(num_seqs, width)
    values = graphs.table.values
    values[:num_seqs, :width] = table.to(values.device)
    tokens = torch.arange(17, 17 + num_seqs)
    found = []
    for context in contexts:
        last = context - 1
        slots = table[:, last // block_size].long() * block_size + last % block_size
        rows = [tokens, torch.full_like(tokens, last), slots, torch.full_like(tokens, context)]
        fields = torch.zeros_like(graphs.fields)
        fields[2] = -1
        fields[: len(rows), :num_seqs] = torch.stack(rows).to(fields.device)
        found.append(fields)
    return found


def _timed(graph: torch.cuda.CUDAGraph, replays: int) -> float:
    """Milliseconds a replay."""
    begin, end = (
        torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        for _ in range(2)
    )
    begin.record()
    for _ in range(replays):
        graph.replay()
    end.record()
    end.synchronize()
    elapsed: float = begin.elapsed_time(end)
    return elapsed / replays


def _nmse(got: Tensor, want: Tensor) -> float:
    wide = want.float()
    return float((got.float() - wide).square().sum() / wide.square().sum())


def _digest(results: Sequence[Tensor]) -> bytes:
    digest = hashlib.blake2b()
    for result in results:
        digest.update(result.cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.digest()
