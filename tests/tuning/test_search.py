"""The search on made-up costs: what it finds, keeps, rejects, and picks up again."""

import pytest

from lite_llama.errors import ConfigError
from lite_llama.kernel_lib.gemv_launch import GemvLaunch
from lite_llama.models.chain_launches import ChainLaunches
from lite_llama.tuning.search import Search, State
from lite_llama.tuning.space import SITES, AttentionSite, Carveout, Site, get, put
from tests.tuning.fakes import FakeMeter, space, start


def site_cost(site: str, value: Site) -> float:
    """Least at some tile, warps, mode and ratios that differ from site to site."""
    at = SITES.index(site) - 1
    if isinstance(value, Carveout):
        return 1.0 + abs(value.percent - 57) / 100
    if isinstance(value, AttentionSite):
        launch = value.launch
        keys = abs(launch.block_n - 64) / 64 + abs(launch.min_chunk - 64) / 128
        rest = abs(launch.num_warps - 2) / 4 + abs(launch.programs_per_head - 8) / 32
        return 1.0 + keys + rest + (0.0 if value.overlap else 0.1)
    tile = abs(value.block_n - (8 if site == "head" else 2)) / 4
    tile += abs(value.block_k.bit_length() - 11) / 4 + abs(value.num_warps - 2) / 8
    if value.overlap < 0:
        return 1.3 + tile
    mode = 0.0 if value.preload == (at % 2 == 0) else 0.05
    # 4 tiles of 1024 in 4096: ratios that name the same tile cost the same.
    return 1.0 + tile + mode + abs(value.overlap - 0.4) / 10 + abs(value.prefetch - 0.6) / 10


def separable(chain: ChainLaunches) -> float:
    return sum(site_cost(site, get(chain, site)) for site in SITES)


def test_greedy_search_finds_the_optimum_of_separable_costs() -> None:
    meter = FakeMeter(separable, noise=0.0)
    found = Search(space(), meter, State(start())).run(SITES)
    for site in SITES:
        candidates = space().everything(site, get(start(), site))
        least = min(site_cost(site, value) for value in candidates)
        assert site_cost(site, get(found.best, site)) == pytest.approx(least, abs=1e-9), site
    assert found.done[: len(SITES)] == list(SITES)
    assert "down + qkv" in found.done
    assert len(meter.calls) < 650
    assert 0 < meter.longer < 40  # only what is about to be taken is timed again


A, B = GemvLaunch(1, 1024, 1, overlap=0.0), GemvLaunch(2, 1024, 2, overlap=0.0)
P, Q = GemvLaunch(1, 1024, 2, overlap=0.0), GemvLaunch(4, 512, 4, overlap=0.0)


def coupled(chain: ChainLaunches) -> float:
    """o = A and gate_up = P are best alone, B and Q together."""
    cost = {A: 1.0, B: 1.05}.get(chain.o, 1.5) + {P: 1.0, Q: 1.05}.get(chain.gate_up, 1.5)
    return cost - (0.3 if (chain.o, chain.gate_up) == (B, Q) else 0.0)


def test_pair_refinement_finds_what_only_two_sites_together_gain() -> None:
    search = Search(space(), FakeMeter(coupled), State(start()))
    for stage in ("o", "gate_up"):
        search.run([stage])
    assert (search.state.best.o, search.state.best.gate_up) == (A, P)
    search.run(["o", "gate_up"])
    assert (search.state.best.o, search.state.best.gate_up) == (B, Q)


def test_a_wrong_result_is_rejected_and_told_however_fast() -> None:
    meter = FakeMeter(separable, noise=0.0, wrong=lambda chain: chain.o.block_n == 2)
    found = Search(space(), meter, State(start())).run(["o"])
    assert found.best.o.block_n == 1
    rejected = [trial for trial in found.trials if trial.timing is None]
    assert rejected
    assert {trial.rejection for trial in rejected} == {"wrong result: NMSE 1"}


def test_of_equals_the_incumbent_stays() -> None:
    def nearly(chain: ChainLaunches) -> float:
        return 1.0 if chain.o == start().o else 0.999

    tie = Search(space(), FakeMeter(nearly, noise=0.002), State(start())).run(["o"])
    assert tie.best == start()
    assert {trial.timing.verdict for trial in tie.trials if trial.timing} == {"tie"}
    clear = Search(space(), FakeMeter(nearly, noise=0.0001), State(start())).run(["o"])
    assert clear.best != start()


def test_an_interrupted_search_goes_on_after_its_last_whole_stage() -> None:
    whole = FakeMeter(separable)
    want = Search(space(), whole, State(start())).run(SITES)
    saved: list[State] = []

    def stop_at_down(chain: ChainLaunches) -> float:
        if chain.down != start().down:
            raise KeyboardInterrupt
        return separable(chain)

    first = Search(space(), FakeMeter(stop_at_down), State(start()), save=saved.append)
    with pytest.raises(KeyboardInterrupt):
        first.run(SITES)
    state = saved[-1]
    assert state.done == ["carveout", "qkv", "attention", "o", "gate_up"]
    assert {trial.stage for trial in state.trials} == set(state.done)
    rest = FakeMeter(separable)
    assert Search(space(), rest, state).run(SITES).best == want.best
    assert len(rest.calls) < len(whole.calls) / 2
    nothing = FakeMeter(separable)
    Search(space(), nothing, state).run(SITES)
    assert nothing.calls == []


def test_an_exhaustive_search_tries_every_launch_of_a_site_and_refuses_too_many() -> None:
    meter = FakeMeter(separable, noise=0.0)
    found = Search(space(), meter, State(start())).run(["attention"], exhaustive=True)
    everything = space().everything("attention", get(start(), "attention"))
    tried = {(chain.attention, chain.attention_overlap) for chain in meter.calls}
    assert len(tried) == len(everything) - 1  # all but the incumbent
    least = min(everything, key=lambda value: site_cost("attention", value))
    assert found.best == put(start(), "attention", least)
    with pytest.raises(ConfigError, match="limit 5000"):
        Search(space(), meter, State(start())).run(["qkv", "o"], exhaustive=True)


def test_what_will_be_measured_is_prepared_first() -> None:
    prepared: set[ChainLaunches] = set()

    def cost(chain: ChainLaunches) -> float:
        assert chain in prepared or chain == search.state.best
        return separable(chain)

    search = Search(space(), FakeMeter(cost), State(start()), prepare=prepared.update)
    search.run(["o", "gate_up"])
    assert len(prepared) > 50
