"""What rank 0 and the processes of the other ranks say to each other, as MessagePack over a pipe.

    rank 0                                   rank 1, 2, ...
    Start: the model, the plan  ---------->  loads its share
           <--------------------- Loaded
    Join  -------------------------------->  (all meet in the group)
           <--------------------- Joined: free bytes
    Begin: KV blocks  -------------------->  allocates its part of the cache
    Inputs | Decode, one a step  --------->  computes the same step

Rank 0 alone schedules and draws tokens. The end of the pipe is the end of a rank; before one ends
for a reason of its own, it says it: Failed.
"""

from typing import Protocol

import msgspec

from lite_llama.engine.batch import Inputs


class OwnsBlocks(Protocol):
    """What a decode step reads of a sequence."""

    @property
    def blocks(self) -> list[int]:
        """Its KV blocks in order: a list that only grows, or another list."""


class Row(msgspec.Struct, frozen=True):
    """A sequence of a decode step, as another rank knows it."""

    blocks: list[int]


class Decode(msgspec.Struct, frozen=True, tag="decode"):
    """One token of each sequence, by a CUDA graph (see `DecodeGraphs.launch`)."""

    positions: list[int]
    rows: list[Row] | None  # None: those of the decode step before
    # The tokens' ids; None: rank 0 has them on its GPU only. It broadcasts them, unless each rank
    # has drawn them itself, in the graph of the decode step before.
    token_ids: list[int] | None
    are_drawn: bool
    greedy: bool


class Plan(msgspec.Struct, frozen=True):
    """An EnginePlan but for its device: the names of its dtypes, and its other fields."""

    activations: str
    weights: str | None
    settings: dict[str, int | bool]


class Start(msgspec.Struct, frozen=True, tag="start"):
    """Who a rank is, and what it loads: a checkpoint, or random weights in a preset's shape."""

    rank: int
    device: str
    store: str  # the file over which the ranks meet
    model: str | None
    preset: str | None
    plan: Plan
    num_threads: int  # of torch, on the CPU


class Join(msgspec.Struct, frozen=True, tag="join"):
    """All ranks have loaded: meet."""


class Begin(msgspec.Struct, frozen=True, tag="begin"):
    """All ranks have met, and steps follow."""

    num_blocks: int


class Loaded(msgspec.Struct, frozen=True, tag="loaded"):
    """The weights are in place."""


class Joined(msgspec.Struct, frozen=True, tag="joined"):
    """This rank is in the group; what its device has left for the cache."""

    free_bytes: int


class Failed(msgspec.Struct, frozen=True, tag="failed"):
    """Why a rank ends."""

    reason: str


ToRank = Start | Join | Begin | Inputs | Decode
FromRank = Loaded | Joined | Failed
