import random
from collections import Counter
from typing import Any

import pytest

from lite_llama.server.affinity import PREFIX_CHARS, prefix_key, rank

REPLICAS = dict.fromkeys(("a", "b", "c", "d"), 0)
KEYS = [number.to_bytes(32, "little") for number in range(4000)]


def chat(*texts: str, **fields: Any) -> dict[str, Any]:
    roles = ("user", "assistant")
    messages = [{"role": roles[i % 2], "content": text} for i, text in enumerate(texts)]
    return {"messages": messages, **fields}


def test_keys_spread_evenly_over_replicas() -> None:
    wins = Counter(rank(key, REPLICAS, 0)[0] for key in KEYS)
    assert set(wins) == set(REPLICAS)
    assert all(abs(num - 1000) < 120 for num in wins.values())  # 4.4 standard deviations


def test_a_replica_that_leaves_moves_only_its_own_keys() -> None:
    left = {name: 0 for name in REPLICAS if name != "b"}
    for key in KEYS[:500]:
        before, after = rank(key, REPLICAS, 0)[0], rank(key, left, 0)[0]
        assert after == before or before == "b"


def test_the_order_in_which_replicas_are_named_does_not_matter() -> None:
    for key in KEYS[:100]:
        shuffled = random.Random(key).sample(list(REPLICAS), 4)
        assert rank(key, dict.fromkeys(shuffled, 0), 0) == rank(key, REPLICAS, 0)


def test_the_winner_keeps_its_keys_up_to_the_imbalance_allowed() -> None:
    key = KEYS[0]
    winner = rank(key, REPLICAS, 8)[0]
    assert rank(key, REPLICAS | {winner: 8}, 8)[0] == winner
    busy = rank(key, REPLICAS | {winner: 9}, 8)
    assert busy[-1] == winner
    assert sorted(busy) == sorted(REPLICAS)


def test_beyond_the_winner_the_least_loaded_comes_first() -> None:
    loads = {"a": 5, "b": 3, "c": 4, "d": 6}
    by_load = ["b", "c", "a", "d"]
    for key in KEYS[:50]:
        first, *others = rank(key, loads, 100)
        assert others == [name for name in by_load if name != first]
        assert rank(key, loads, 0) == by_load


def test_no_replica_is_no_answer() -> None:
    assert rank(KEYS[0], {}, 0) == []


def test_every_turn_of_a_conversation_has_one_key() -> None:
    first = prefix_key(chat("Hello"), "")
    assert prefix_key(chat("Hello", "Hi!", "Go on"), "") == first
    assert prefix_key(chat("Hello", temperature=1.0, stream=True), "") == first
    assert prefix_key(chat("Hullo"), "") != first


def test_a_long_shared_prefix_has_one_key() -> None:
    shared = "word " * PREFIX_CHARS
    assert prefix_key({"prompt": shared + "a"}, "") == prefix_key({"prompt": shared + "b"}, "")
    assert prefix_key({"prompt": "a"}, "") != prefix_key({"prompt": "b"}, "")


@pytest.mark.parametrize(
    "other",
    [
        chat("Hello", tools=[{"type": "function"}]),
        chat("Hello", system="Be brief"),
        chat("Hello", instructions="Be brief"),
        chat("Hello", cache_salt="x"),
    ],
)
def test_what_stands_before_the_conversation_belongs_to_the_key(other: dict[str, Any]) -> None:
    assert prefix_key(other, "") != prefix_key(chat("Hello"), "")


def test_two_api_keys_have_two_keys() -> None:
    assert prefix_key(chat("Hello"), "one") != prefix_key(chat("Hello"), "two")


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"prompt": None},
        {"prompt": [1, 2, 3]},
        {"prompt": [["nested", {}], 5]},
        {"messages": "no list"},
        {"messages": [None, 7, {"role": ["user"]}]},
        {"messages": [{"role": "user", "content": "\ud800"}]},
        {"input": [{"role": "user"}], "prompt": 3},
    ],
)
def test_a_body_that_the_replica_will_refuse_has_a_key_too(body: dict[str, Any]) -> None:
    assert len(prefix_key(body, "")) == 32
