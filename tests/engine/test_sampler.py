"""The draw: its random numbers, its distribution, and hostile corners of its input."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from lite_llama import ops
from lite_llama.engine.logits import Logits
from lite_llama.engine.request import Request
from lite_llama.engine.sampler import Sampler, logprobs_of
from lite_llama.engine.sampling_params import SamplingParams
from lite_llama.ops.sample.reference import philox_uniform

MASK = 0xFFFFFFFF


def philox4x32_10(counter: list[int], key: list[int]) -> list[int]:
    """Salmon et al. 2011, figure 2 and section 3.3, on Python integers."""
    for _ in range(10):
        product0, product1 = counter[0] * 0xD2511F53, counter[2] * 0xCD9E8D57
        counter = [
            (product1 >> 32) ^ counter[1] ^ key[0],
            product1 & MASK,
            (product0 >> 32) ^ counter[3] ^ key[1],
            product0 & MASK,
        ]
        key = [(key[0] + 0x9E3779B9) & MASK, (key[1] + 0xBB67AE85) & MASK]
    return counter


# Random123's kat_vectors: counter, key, output.
KNOWN_ANSWERS = [
    ("00000000 " * 4, "00000000 " * 2, "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff " * 4, "ffffffff " * 2, "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    (
        "243f6a88 85a308d3 13198a2e 03707344",
        "a4093822 299f31d0",
        "d16cfe09 94fdcceb 5001e420 24126ea1",
    ),
]


@pytest.mark.parametrize(("counter", "key", "output"), KNOWN_ANSWERS)
def test_the_oracle_gives_the_published_answers(counter: str, key: str, output: str) -> None:
    words = [[int(word, 16) for word in text.split()] for text in (counter, key, output)]
    assert philox4x32_10(words[0], words[1]) == words[2]


def test_uniform_numbers_are_philox_of_seed_and_position() -> None:
    generator = torch.Generator().manual_seed(0)
    seeds = torch.randint(-(2**63), 2**63 - 1, (200,), generator=generator)
    positions = torch.randint(0, 2**40, (200,), generator=generator)
    edges = [0, 1, -1, 2**32, 2**63 - 1, -(2**63)]
    seeds = torch.cat((seeds, torch.tensor(edges)))
    positions = torch.cat((positions, torch.tensor([0, 0, 1, 2**32, MASK, 7])))
    expected = [
        (philox4x32_10([p & MASK, p >> 32, 0, 0], [s & MASK, (s >> 32) & MASK])[0] >> 8) / 2**24
        for s, p in zip(seeds.tolist(), positions.tolist(), strict=True)
    ]
    assert philox_uniform(seeds, positions).tolist() == expected
    assert float(philox_uniform(torch.zeros(1).long(), torch.zeros(1).long())) == 0x6627E8 / 2**24


def rows(count: int, **changes: Any) -> ops.SamplingRows:
    """`count` rows of one setting, seeds 0, 1, ..."""
    values = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "position": 11, **changes}
    return ops.SamplingRows(
        temperature=torch.full((count,), values["temperature"]),
        top_k=torch.full((count,), values["top_k"], dtype=torch.int32),
        top_p=torch.full((count,), values["top_p"]),
        min_p=torch.full((count,), values["min_p"]),
        seeds=torch.arange(count),
        positions=torch.full((count,), values["position"]),
    )


LOGITS = torch.tensor([1.0, -0.5, 2.0, 0.3, 1.9, -3.0, 0.0, 1.2, -1.0, 0.9, 0.89, -0.2])
NUM_DRAWS = 20_000


def expected_probabilities(
    logits: Tensor,
    *,
    temperature: float = 1.0,
    top_k: int = 0,
    top_p: float = 1.0,
    min_p: float = 0,
) -> Tensor:
    """The distribution by its definition, token by token, in float64."""
    weights = torch.softmax(logits.double() / temperature, dim=0)
    kept = sorted(range(len(weights)), key=lambda token: -float(weights[token]))
    if top_k:
        kept = kept[:top_k]
    total = float(weights[kept].sum())
    nucleus: list[int] = []
    for token in kept:
        nucleus.append(token)
        if float(weights[nucleus].sum()) / total >= top_p:
            break
    best = float(weights.max())
    final = [token for token in nucleus if float(weights[token]) >= min_p * best]
    result = torch.zeros_like(weights)
    result[final] = weights[final]
    return result / result.sum()


SETTINGS: dict[str, dict[str, Any]] = {
    "plain": {},
    "hot": {"temperature": 2.0},
    "cold": {"temperature": 0.4},
    "top_k": {"top_k": 4},
    "top_k of one": {"top_k": 1},
    "top_k beyond the vocabulary": {"top_k": 1000},
    "top_p": {"top_p": 0.7},
    "top_p tiny": {"top_p": 1e-6},
    "min_p": {"min_p": 0.3},
    "min_p of one": {"min_p": 1.0},
    "top_k and top_p": {"top_k": 6, "top_p": 0.8},
    "all": {"temperature": 1.5, "top_k": 8, "top_p": 0.9, "min_p": 0.2},
}


@pytest.mark.parametrize("name", SETTINGS)
def test_draws_follow_the_distribution(name: str) -> None:
    expected = expected_probabilities(LOGITS, **SETTINGS[name])
    drawn = ops.sample(LOGITS.expand(NUM_DRAWS, -1), rows(NUM_DRAWS, **SETTINGS[name]))
    counts = torch.bincount(drawn, minlength=len(LOGITS)).double()
    possible = expected > 0
    assert float(counts[~possible].sum()) == 0, "a token was drawn that had been cut off"
    wanted = NUM_DRAWS * expected[possible]
    chi_square = float(((counts[possible] - wanted) ** 2 / wanted).sum())
    # The 99.9 % quantile for 0 to 11 degrees of freedom (tables); the seeds are fixed.
    quantiles = [1e-9, 10.8, 13.8, 16.3, 18.5, 20.5, 22.5, 24.3, 26.1, 27.9, 29.6, 31.3]
    assert chi_square < quantiles[int(possible.sum()) - 1]


def test_positions_give_independent_draws() -> None:
    logits = LOGITS.expand(NUM_DRAWS, -1)
    first = ops.sample(logits, rows(NUM_DRAWS, position=1))
    second = ops.sample(logits, rows(NUM_DRAWS, position=2))
    probabilities = expected_probabilities(LOGITS)
    agreement = float((first == second).double().mean())
    assert agreement == pytest.approx(float((probabilities**2).sum()), abs=0.01)


def test_a_rows_draw_does_not_depend_on_the_other_rows() -> None:
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(6, 50, generator=generator) * 3
    mixed = ops.SamplingRows(
        temperature=torch.tensor([0.0, 1.0, 0.7, 1.5, 0.0, 1.0]),
        top_k=torch.tensor([0, 5, 0, 50, 3, 0], dtype=torch.int32),
        top_p=torch.tensor([1.0, 1.0, 0.5, 0.9, 0.2, 1.0]),
        min_p=torch.tensor([0.0, 0.0, 0.1, 0.0, 0.0, 0.2]),
        seeds=torch.arange(6),
        positions=torch.arange(10, 16),
    )
    together = ops.sample(logits, mixed)
    for i in range(6):
        single = ops.SamplingRows(
            **{
                k: v[i : i + 1] if isinstance(v, torch.Tensor) else v
                for k, v in vars(mixed).items()
            }
        )
        assert int(ops.sample(logits[i : i + 1], single)) == int(together[i])
    assert int(together[0]) == int(logits[0].argmax())
    assert int(together[4]) == int(logits[4].argmax())


def test_forbidden_tokens_are_never_drawn() -> None:
    logits = LOGITS.clone()
    logits[[2, 4]] = float("-inf")
    for settings in SETTINGS.values():
        drawn = ops.sample(logits.expand(2000, -1), rows(2000, **settings))
        assert not bool(torch.isin(drawn, torch.tensor([2, 4])).any())
    only = torch.full((1, 12), float("-inf"))
    only[0, 7] = -5.0
    assert ops.sample(only, rows(1)).tolist() == [7]


@pytest.mark.parametrize("temperature", [1e-45, 1e-38, 1e-30, 1e-6])
def test_a_tiny_temperature_is_greedy_and_no_overflow(temperature: float) -> None:
    drawn = ops.sample(LOGITS.expand(100, -1) * 30, rows(100, temperature=temperature))
    assert drawn.tolist() == [2] * 100


def test_equally_likely_tokens_at_the_cut_are_all_kept() -> None:
    logits = torch.tensor([[0.0, 2.0, 2.0, 2.0, -1.0]]).expand(3000, -1)
    assert set(ops.sample(logits, rows(3000, top_k=2)).tolist()) == {1, 2, 3}
    assert set(ops.sample(logits, rows(3000, top_p=0.4)).tolist()) == {1, 2, 3}


def test_sampling_does_not_change_the_logits() -> None:
    logits = LOGITS.expand(4, -1).clone()
    ops.sample(logits, rows(4, top_k=2, top_p=0.5, min_p=0.1))
    assert bool((logits == LOGITS).all())


def request(output: list[int] | None = None, **params: Any) -> Request:
    return Request(
        request_id="a",
        prompt_token_ids=[1, 2],
        params=SamplingParams(**params),
        seed=0,
        stop_token_ids=frozenset({2, 4}),
        max_total_tokens=100,
        output_token_ids=output or [],
    )


def sampler() -> Sampler:
    return Sampler(4, len(LOGITS), torch.device("cpu"))


@pytest.mark.parametrize("penalty", [0.01, 2.0])
@pytest.mark.parametrize("temperature", [0.0, 1e-30, 2.0])
def test_extreme_settings_still_draw_a_token(penalty: float, temperature: float) -> None:
    extreme = request(
        [2, 4, 4],
        repetition_penalty=penalty,
        presence_penalty=-2.0,
        frequency_penalty=2.0,
        temperature=temperature,
        logit_bias={0: 100, 1: -100},
        min_tokens=10,
    )
    logits = LOGITS[None] * 100
    [token] = sampler().sample(Logits(logits, in_place=False), [extreme]).tolist()
    assert token in set(range(12)) - {2, 4}


def test_early_ends_are_banned_until_min_tokens() -> None:
    early, late = request([5], temperature=0, min_tokens=2), request([5, 5], temperature=0)
    two = Logits(LOGITS.expand(2, -1).clone(), in_place=False)
    assert sampler().sample(two, [early, late]).tolist() == [7, 2]


def test_logprobs_name_the_token_then_the_likeliest() -> None:
    values = LOGITS.log_softmax(0)
    rows_of = logprobs_of(LOGITS.expand(2, -1), [5, 2], [0, 3])
    [[only], [own, *best]] = rows_of
    assert (only.token_id, only.rank) == (5, 12)
    assert only.logprob == pytest.approx(float(values[5]), abs=1e-6)
    assert (own.token_id, own.rank) == (2, 1)
    assert [(entry.token_id, entry.rank) for entry in best] == [(2, 1), (4, 2), (7, 3)]
    assert [entry.logprob for entry in best] == pytest.approx(values[[2, 4, 7]].tolist(), abs=1e-6)


def test_more_alternatives_than_tokens_are_all_tokens() -> None:
    [[_, *best]] = logprobs_of(LOGITS[None, :5], [0], [20])
    assert [entry.token_id for entry in best] == [2, 4, 0, 3, 1]


@pytest.mark.parametrize("num_unread", [0, 1])
def test_a_sampler_that_keeps_its_rows_draws_what_a_new_one_does(num_unread: int) -> None:
    batch = [request(temperature=1.3, top_k=k, top_p=0.9) for k in (0, 3, 5)]
    other = request(temperature=0.7)
    for one in (*batch, other):
        one.num_unread_tokens = num_unread
        one.num_tokens += num_unread
    kept = sampler()
    generator = torch.Generator().manual_seed(5)
    for step in range(12):
        # The last leaves after six steps, another one joins, and the first two go on together.
        present = batch if step < 6 else [*batch[:2], other] if step < 9 else batch[:2]
        logits = torch.randn(len(present), 12, generator=generator)
        given = kept.sample(Logits(logits.clone(), in_place=False), present)
        assert given.tolist() == sampler().sample(Logits(logits, in_place=False), present).tolist()
        for one, token in zip(present, given.tolist(), strict=True):
            one.output_token_ids.append(token)
            one.num_tokens += 1


def test_padding_of_a_recorded_draw_asks_for_no_search(monkeypatch: pytest.MonkeyPatch) -> None:
    held: list[ops.SamplingRows] = []
    draw = ops.sample

    def noting(logits: Tensor, rows: ops.SamplingRows) -> Tensor:
        held.append(rows)
        return draw(logits, rows)

    def record(launch: Callable[[], Tensor]) -> Any:
        tokens = launch()
        return SimpleNamespace(replay=lambda: tokens.copy_(launch())), tokens

    monkeypatch.setattr(ops, "sample", noting)
    padded = Sampler(4, LOGITS.numel(), LOGITS.device, record)
    logits = LOGITS.repeat(4, 1)
    # Rows that three requests leave behind are the padding of one that cuts otherwise.
    padded.sample(Logits(logits, in_place=True), [request(top_p=0.5)] * 3)
    padded.sample(Logits(logits, in_place=True), [request(top_k=2)])
    assert held[-1].any_top_k
    assert not held[-1].any_top_p
    assert held[-1].temperature.tolist() == [1, 0, 0, 0]
