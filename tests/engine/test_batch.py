"""Which row of a step each decoding sequence has."""

from hypothesis import given
from hypothesis import strategies as st

from lite_llama.engine.batch import Rows
from lite_llama.engine.request import Request
from lite_llama.engine.sampling_params import SamplingParams
from lite_llama.engine.scheduler import Scheduled


def plan(requests: dict[str, Request], names: str, prompts: str = "") -> list[Scheduled]:
    for name in names + prompts:
        if name not in requests:
            requests[name] = Request(name, [1], SamplingParams(), 0, frozenset(), 9)
    shares = [Scheduled(requests[name], 1, draws_token=True) for name in names]
    return [Scheduled(requests[name], 2, draws_token=True) for name in prompts] + shares


def names_of(planned: list[Scheduled]) -> str:
    return "".join(share.request.request_id for share in planned)


def test_sequences_keep_their_rows_and_the_last_ones_fill_those_that_are_left() -> None:
    rows, requests = Rows(), dict[str, Request]()
    steps = [
        ("abcdef", "", "abcdef"),
        ("acdef", "", "afcde"),  # the last one takes b's row
        ("acdefgh", "x", "afcdeghx"),  # prompts come last
        ("acdehx", "", "axcdeh"),  # who comes fills a row before the last one does
        ("xyz", "", "yxz"),
        ("pq", "", "pq"),
        ("", "r", "r"),
        ("", "", ""),
    ]
    for decoding, prompts, expected in steps:
        assert names_of(rows.order(plan(requests, decoding, prompts))) == expected


@given(st.lists(st.sets(st.sampled_from("abcdefghij")), max_size=12))
def test_every_share_has_a_row_and_moves_only_to_fill_one(steps: list[set[str]]) -> None:
    rows, requests = Rows(), dict[str, Request]()
    before = ""
    for step in steps:
        found = names_of(rows.order(plan(requests, "".join(sorted(step)))))
        assert sorted(found) == sorted(step)
        stayed = set(before) & step
        assert all(
            found[i] == name for i, name in enumerate(before[: len(found)]) if name in stayed
        )
        before = found
