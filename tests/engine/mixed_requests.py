"""Requests of every kind that come and go at random: what one engine says, another must say too."""

import random

from lite_llama import SamplingParams
from lite_llama.engine.engine import Engine


def run(engine: Engine, seed: int, count: int = 16) -> tuple[dict[str, list[int]], set[str]]:
    """Tokens by request of `count` requests, and which of them were aborted.

    Who comes when, asks for what and leaves early is a matter of the seed and of the number of
    steps alone.
    """
    draw = random.Random(seed)
    waiting = [
        (str(number), _prompt(draw, engine.model.vocab_size), _params(draw, number))
        for number in range(count)
    ]
    tokens: dict[str, list[int]] = {name: [] for name, _, _ in waiting}
    aborted: set[str] = set()
    while waiting or engine.has_requests:
        for _ in range(draw.choice((0, 0, 1, 2))):
            if waiting:
                engine.add(*waiting.pop(0))
        if draw.random() < 0.05 and len(waiting) < count:
            leaving = str(draw.randrange(count - len(waiting)))
            aborted.add(leaving)
            engine.abort(leaving)
        for output in engine.step():
            tokens[output.request_id].append(output.token_id)
    engine.scheduler.pool.check()
    assert engine.scheduler.pool.num_used == 0
    return tokens, aborted


def assert_alike(
    one: tuple[dict[str, list[int]], set[str]], other: tuple[dict[str, list[int]], set[str]]
) -> None:
    """The same tokens; who leaves early may have had a step more in one engine."""
    aborted = one[1] | other[1]
    for name, tokens in one[0].items():
        others = other[0][name]
        if name in aborted:
            shared = min(len(tokens), len(others))
            assert tokens[:shared] == others[:shared], name
        else:
            assert tokens == others, name


def _prompt(draw: random.Random, vocab_size: int) -> list[int]:
    return [draw.randrange(vocab_size) for _ in range(draw.randrange(1, 20))]


def _params(draw: random.Random, number: int) -> SamplingParams:
    fields: dict[str, object] = {"max_tokens": draw.randrange(1, 15), "ignore_eos": True}
    fields |= {"temperature": draw.choice((0.0, 0.7, 1.3)), "seed": number}
    if draw.random() < 0.4:
        fields["top_k"] = draw.choice((1, 3, 40))
    if draw.random() < 0.4:
        fields["top_p"] = draw.choice((0.3, 0.9))
    if draw.random() < 0.2:
        fields["min_p"] = 0.1
    if draw.random() < 0.15:
        fields |= {"frequency_penalty": 0.5, "repetition_penalty": 1.3}
    if draw.random() < 0.1:
        fields["logit_bias"] = {5: 2.0}
    return SamplingParams(**fields)  # type: ignore[arg-type]
