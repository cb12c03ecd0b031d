"""Greedy search over the chain's sites, then over pairs of neighbours; knows no GPU.

A site's candidates are compared with the chain as it stood when the site's turn came: tiles first,
then the modes of the best two, then overlap ratio and prefetch ratio of the best. The best few are
timed again, longer, and one replaces the incumbent only if it is faster beyond the spread: of
equals, what was there stays.
"""

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

from lite_llama.errors import ConfigError
from lite_llama.models.chain_launches import ChainLaunches
from lite_llama.tuning.space import NEIGHBOURS, SITES, Site, Space, get, put

# Tiles of a site whose modes are searched.
_NUM_TILES = 2
# Values of a site that are combined with its neighbour's.
_NUM_PAIRED = 3
# Candidates that are timed again before one is taken.
_NUM_FINALISTS = 3
MAX_EXHAUSTIVE = 5000


@dataclass(frozen=True)
class Timing:
    """A candidate replayed in turn with the incumbent.

    `ms` a step, median; `ratio` of its time to the incumbent's, median over the rounds, with p20
    and p80. `stopped`: given up after the first round.
    """

    ms: float
    ratio: float
    low: float
    high: float
    stopped: bool = False

    @property
    def verdict(self) -> str:
        """faster, slower, or tie where the spread holds 1."""
        if self.high < 1.0:
            return "faster"
        return "slower" if self.low > 1.0 else "tie"


class Rejected(Exception):
    """A candidate that does not compile, does not launch, or computes something else."""


class Measure(Protocol):
    """Times a candidate beside the incumbent; Rejected says why there is no time."""

    def __call__(
        self, candidate: ChainLaunches, incumbent: ChainLaunches, *, longer: bool
    ) -> Timing:
        """`longer`: more rounds, and no giving up."""


# Told which chains will be measured next, so that their kernels can be compiled side by side.
Prepare = Callable[[Sequence[ChainLaunches]], None]


@dataclass(frozen=True)
class Trial:
    """One candidate of a stage: the sites it changes, and its timing or why it was rejected."""

    stage: str
    values: dict[str, Site]
    timing: Timing | None
    rejection: str = ""

    @property
    def ratio(self) -> float:
        """To sort by: rejected ones come last."""
        return self.timing.ratio if self.timing else math.inf


@dataclass
class State:
    """How far a search has come; what a later run picks up."""

    best: ChainLaunches
    done: list[str] = field(default_factory=list)
    trials: list[Trial] = field(default_factory=list)


@dataclass
class Search:
    """One model, one batch size. `save` is called after each stage, `tick` for each candidate."""

    space: Space
    measure: Measure
    state: State
    prepare: Prepare = lambda _: None
    save: Callable[[State], None] = lambda _: None
    tick: Callable[[str], None] = lambda _: None

    def run(self, sites: Sequence[str], *, exhaustive: bool = False) -> State:
        """Search the sites in the chain's order, skipping stages that are done."""
        sites = [site for site in SITES if site in sites]
        if exhaustive:
            self._stage(" x ".join(sites), partial(self._exhaust, sites))
            return self.state
        for site in sites:
            self._stage(site, partial(self._search_site, site))
        for pair in NEIGHBOURS:
            if set(pair) <= set(sites):
                self._stage(" + ".join(pair), partial(self._refine, pair))
        return self.state

    def _stage(self, name: str, work: Callable[[str], None]) -> None:
        if name in self.state.done:
            return
        before = len(self.state.trials)
        try:
            work(name)
        except BaseException:
            del self.state.trials[before:]  # a stage is done wholly or not at all
            raise
        self.state.done.append(name)
        self.save(self.state)

    def _search_site(self, site: str, stage: str) -> None:
        tiles = self.space.tiles(site, get(self.state.best, site))
        values = self._ranked(stage, site, tiles)[:_NUM_TILES]
        for vary in self.space.coordinates(site):
            values = self._ranked(
                stage, site, [*values, *(other for value in values for other in vary(value))]
            )[:1]
        self._take_best(stage)

    def _ranked(self, stage: str, site: str, values: Iterable[Site]) -> list[Site]:
        """The values of a site that could be timed, best first."""
        changes = [{site: value} for value in self.space.distinct(site, values)]
        return [trial.values[site] for trial in self._rank(stage, changes)]

    def _refine(self, pair: tuple[str, str], stage: str) -> None:
        choices = [self._few_best(site) for site in pair]
        changes = [dict(zip(pair, values, strict=True)) for values in itertools.product(*choices)]
        self._rank(stage, changes)
        self._take_best(stage)

    def _few_best(self, site: str) -> list[Site]:
        """The incumbent of a site and the next best of its own stage."""
        own = [trial for trial in self.state.trials if trial.stage == site and trial.timing]
        values = [trial.values[site] for trial in sorted(own, key=lambda trial: trial.ratio)]
        return self.space.distinct(site, [get(self.state.best, site), *values])[:_NUM_PAIRED]

    def _exhaust(self, sites: Sequence[str], stage: str) -> None:
        choices = [self.space.everything(site, get(self.state.best, site)) for site in sites]
        count = math.prod(map(len, choices))
        if count > MAX_EXHAUSTIVE:
            raise ConfigError(
                f"--exhaustive would try {count} chains, limit {MAX_EXHAUSTIVE}; give fewer --site"
            )
        for site, values in zip(sites, choices, strict=True):
            self.prepare([put(self.state.best, site, value) for value in values])
        changes = [dict(zip(sites, values, strict=True)) for values in itertools.product(*choices)]
        self._rank(stage, changes)
        self._take_best(stage)

    def _rank(self, stage: str, changes: Iterable[dict[str, Site]]) -> list[Trial]:
        """The trials of these changes, best first; what was measured before is not again."""
        known = {
            self._key(trial.values): trial for trial in self.state.trials if trial.stage == stage
        }
        new = [change for change in changes if self._key(change) not in known]
        self.prepare([self._chain(change) for change in new])
        for change in new:
            known[self._key(change)] = trial = self._try(stage, change, longer=False)
            self.state.trials.append(trial)
        found = [known[self._key(change)] for change in changes]
        return sorted((trial for trial in found if trial.timing), key=lambda trial: trial.ratio)

    def _take_best(self, stage: str) -> None:
        """Time the best of a stage again and take the first that beats the incumbent."""
        own = [trial for trial in self.state.trials if trial.stage == stage and trial.ratio < 1.0]
        finalists = sorted(own, key=lambda trial: trial.ratio)[:_NUM_FINALISTS]
        again = [self._try(stage, trial.values, longer=True) for trial in finalists]
        for old, new in zip(finalists, again, strict=True):
            self.state.trials[self.state.trials.index(old)] = new
        again = [trial for trial in again if trial.timing and trial.timing.verdict == "faster"]
        if again:
            self.state.best = self._chain(min(again, key=lambda trial: trial.ratio).values)

    def _try(self, stage: str, change: dict[str, Site], *, longer: bool) -> Trial:
        chain = self._chain(change)
        self.tick(stage)
        if chain == self.state.best:
            return Trial(stage, change, Timing(math.nan, 1.0, 1.0, 1.0))
        try:
            return Trial(stage, change, self.measure(chain, self.state.best, longer=longer))
        except Rejected as reason:
            return Trial(stage, change, None, str(reason))

    def _chain(self, change: dict[str, Site]) -> ChainLaunches:
        chain = self.state.best
        for site, value in change.items():
            chain = put(chain, site, value)
        return chain

    def _key(self, change: dict[str, Site]) -> Any:
        return tuple((site, self.space.identity(site, value)) for site, value in change.items())
