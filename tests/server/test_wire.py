"""Messages between the two sides of a server, and what a reader that hangs does to the writer."""

import math
import socket
import time
from collections.abc import Iterator

import pytest

from lite_llama.engine.request import StepOutput, TokenLogprob
from lite_llama.engine.sampling_params import SamplingParams
from lite_llama.server import wire
from lite_llama.text.grammar import GrammarSpec

PARAMS = SamplingParams(
    n=2,
    seed=-(2**63),
    logit_bias={7: -1.5},
    stop_token_ids=[3],
    max_tokens=None,
    logprobs=2,
    temperature=0.5,
)
ROW = [TokenLogprob(1, -0.25, 1), TokenLogprob(2**31 - 1, -math.inf, 9)]
COMMANDS = [
    wire.Load(None, {"max_model_len": 5, "device": "cpu", "num_blocks": None}, 1.5),
    wire.Add(["0", "1"], [0, 2**31], PARAMS, "salt/ä", GrammarSpec("regex", "[ab]+")),
    wire.Add(["2"], [1], SamplingParams(), "", None),
    wire.Abort(["0", "unknown"]),
    wire.Stop(),
]
OUTPUTS = [
    StepOutput("0", 5, None, None, None, None, 0),
    StepOutput("1", 6, ROW, [None, ROW], "stop", 6, 16),
    StepOutput("2", 7, None, None, "error", None, 0, "why"),
]
EVENTS = [
    wire.Phase("load", 0.5),
    wire.Failed("ConfigError", "too long"),
    wire.Ready(2048, 16),
    wire.Step(OUTPUTS, wire.Figures(1, 2, 0.5, 4, 5, 6), 1.0, 2.0, ["0"]),
    wire.Refused(["1"], "no", None),
    wire.Ended(["1"]),
    wire.Died("SystemExit: x"),
]


@pytest.fixture
def pair() -> Iterator[tuple[wire.Channel, wire.Channel]]:
    ends = socket.socketpair()
    yield wire.Channel(ends[0]), wire.Channel(ends[1])
    for end in ends:
        end.close()


def test_what_is_sent_is_what_arrives(pair: tuple[wire.Channel, wire.Channel]) -> None:
    ours, theirs = pair
    for command in COMMANDS:
        ours.send(command)
    for event in EVENTS:
        theirs.send(event)
    read = [wire.decode_command(payload) for payload in theirs.receive()]
    add = read[1]
    assert isinstance(add, wire.Add)
    assert add.params == PARAMS
    assert read[:1] + read[3:] == COMMANDS[:1] + COMMANDS[3:]
    assert [wire.decode_event(payload) for payload in ours.receive()] == EVENTS


def test_messages_larger_than_the_socket_come_whole_and_in_order(
    pair: tuple[wire.Channel, wire.Channel],
) -> None:
    ours, theirs = pair
    sent = [wire.Add([str(i)], list(range(300_000 * (i % 2))), PARAMS, "", None) for i in range(6)]
    for command in sent:
        ours.send(command)
    assert ours.has_unsent
    read: list[wire.Command] = []
    while len(read) < len(sent):
        read += [wire.decode_command(payload) for payload in theirs.receive()]
        ours.flush()
    assert read == sent
    assert not ours.has_unsent


def test_a_reader_that_hangs_does_not_hold_up_the_writer(
    pair: tuple[wire.Channel, wire.Channel],
) -> None:
    _, theirs = pair
    begun = time.monotonic()
    for _ in range(5000):
        theirs.send(EVENTS[3])
    assert time.monotonic() - begun < 2
    assert theirs.has_unsent


def test_a_closed_end_is_noticed_on_both_ways(pair: tuple[wire.Channel, wire.Channel]) -> None:
    ours, theirs = pair
    ours.close()
    with pytest.raises(wire.PeerGone):
        theirs.receive()
    with pytest.raises(wire.PeerGone):
        theirs.send(wire.Stop())
