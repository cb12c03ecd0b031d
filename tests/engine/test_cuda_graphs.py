"""Recorded steps, launched ahead of the host, give the tokens of plain ones, bit for bit."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch

from lite_llama import EngineConfig, SamplingParams
from lite_llama.engine.config import resolve
from lite_llama.engine.engine import Engine
from lite_llama.engine.request import Grammar
from lite_llama.models import decode_chain
from lite_llama.models.decoder import Decoder
from lite_llama.models.loader import Precision, random_decoder
from tests.engine import mixed_requests
from tests.engine.test_look_ahead import Near
from tests.models.test_decode_chain import BASE

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: no CUDA graphs")

CONFIG = replace(BASE, vocab_size=1000, hidden_size=128, intermediate_size=192, max_positions=256)
PROMPTS = [list(range(3, 3 + n)) for n in (5, 17, 33)]
GREEDY = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True)


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    torch.manual_seed(3)
    precision = Precision(torch.bfloat16, torch.bfloat16)
    return random_decoder(CONFIG, precision, device=torch.device("cuda"), num_positions=256)


def engine(decoder: Decoder, *, eager: bool, eos: Sequence[int] = ()) -> Engine:
    asked = EngineConfig(
        dtype="bfloat16", device="cuda", max_num_seqs=4, enforce_eager=eager, prefix_caching=False
    )
    return Engine(decoder, resolve(asked, CONFIG), 64, frozenset(eos))


def run(
    engine: Engine,
    params: Sequence[SamplingParams],
    *,
    late: int = 0,
    grammar: Grammar | None = None,
) -> dict[str, list[int]]:
    """Tokens by request; the first has the grammar, the last request joins after `late` steps."""
    tokens: dict[str, list[int]] = {str(i): [] for i in range(len(params))}
    jobs = list(zip(tokens, PROMPTS[: len(params)], params, strict=True))
    for job in jobs[:-1] if late else jobs:
        engine.add(*job, grammar=grammar if job is jobs[0] else None)
    steps = 0
    while engine.has_requests:
        steps += 1
        if steps == late:
            engine.add(*jobs[-1])
        for output in engine.step():
            tokens[output.request_id].append(output.token_id)
    engine.scheduler.pool.check()
    assert engine.scheduler.pool.num_used == 0
    return tokens


@pytest.mark.parametrize("late", [0, 7])
def test_batches_that_are_joined_and_left_give_the_eager_tokens(
    decoder: Decoder, late: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The last sequence runs alone at the end; the fused chain rounds alike but sums otherwise.
    monkeypatch.setattr(decode_chain, "fits", lambda *_: False)
    params = [replace(GREEDY, max_tokens=n) for n in (40, 11, 25)]
    want = run(engine(decoder, eager=True), params, late=late)
    assert run(engine(decoder, eager=False), params, late=late) == want


def test_seeded_draws_are_those_of_eager_steps(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_chain, "fits", lambda *_: False)
    params = [replace(GREEDY, temperature=1.0, top_k=k, seed=k) for k in (0, 5, 40)]
    want = run(engine(decoder, eager=True), params)
    assert run(engine(decoder, eager=False), params) == want


def test_draws_beside_padding_are_those_of_eager_steps(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_chain, "fits", lambda *_: False)
    cuts: tuple[dict[str, Any], ...] = ({"top_p": 0.9}, {"top_k": 40}, {})
    drawing = replace(GREEDY, temperature=1.0, max_tokens=12, seed=1)
    recorded, eager = engine(decoder, eager=False), engine(decoder, eager=True)
    for cut in cuts:
        for count in (3, 2, 1):  # three are padded to four
            params = [replace(drawing, **cut)] * count
            assert run(recorded, params) == run(eager, params)


@pytest.mark.parametrize("seed", range(4))
def test_requests_of_all_kinds_at_random_have_the_eager_tokens(
    decoder: Decoder, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_chain, "fits", lambda *_: False)
    want = mixed_requests.run(engine(decoder, eager=True), seed)
    mixed_requests.assert_alike(mixed_requests.run(engine(decoder, eager=False), seed), want)


@pytest.mark.parametrize("late", [0, 7])
def test_draws_that_wait_for_the_host_are_those_of_eager_steps(
    decoder: Decoder, late: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(decode_chain, "fits", lambda *_: False)
    params = [
        replace(GREEDY, ignore_eos=False, temperature=1.2, seed=7),
        replace(GREEDY, frequency_penalty=0.8, repetition_penalty=1.4, max_tokens=31),
        replace(GREEDY, logit_bias={5: 3.0, 900: 2.0}, temperature=1.0, seed=1, min_tokens=20),
    ]
    want = run(engine(decoder, eager=True), params, late=late, grammar=Near())
    looking = engine(decoder, eager=False)
    graphs = looking.runner.graphs
    assert graphs is not None
    launch, ahead = graphs.launch, []

    def noting(requests: Any, positions: Any, tokens: Any, draw: Any) -> Any:
        ahead.append(isinstance(tokens, torch.Tensor))
        return launch(requests, positions, tokens, draw)

    monkeypatch.setattr(graphs, "launch", noting)
    assert run(looking, params, late=late, grammar=Near()) == want
    assert sum(ahead) > 25


def test_a_stop_token_ends_a_sequence_whose_next_step_is_under_way(decoder: Decoder) -> None:
    free = run(engine(decoder, eager=False), [GREEDY] * 3)
    stop = free["1"][12]
    first = free["1"].index(stop)
    params = [replace(GREEDY, ignore_eos=False)] * 3
    stopped = run(engine(decoder, eager=False, eos=[stop]), params)
    assert stopped["1"] == free["1"][: first + 1]


def test_the_chain_is_near_the_decoder_and_repeats_itself(decoder: Decoder) -> None:
    assert decode_chain.fits(decoder, 1)
    one = [GREEDY]
    chained = run(engine(decoder, eager=False), one)["0"]
    assert run(engine(decoder, eager=False), one)["0"] == chained
    # Where it parts from the eager tokens, the two best logits were close.
    plain = run(engine(decoder, eager=True), one)["0"]
    parted = next((i for i, (a, b) in enumerate(zip(chained, plain, strict=True)) if a != b), None)
    if parted is not None:
        logits = engine(decoder, eager=True).logits(PROMPTS[0] + plain[:parted])[-1]
        assert logits.max() - logits[chained[parted]] < 0.05
