"""The process of one rank but rank 0: it loads its share and computes every step it is told of.

Started by workers.py. It knows no requests and draws no tokens; see messages.py.
"""

import os
import time
import traceback
from contextlib import suppress
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import msgspec
import torch

from lite_llama.checkpoint.reader import open_checkpoint
from lite_llama.engine.batch import Inputs, Unread
from lite_llama.engine.child_process import follow_parent
from lite_llama.engine.config import EnginePlan, free_memory
from lite_llama.engine.cuda_graphs import SharedGraphs
from lite_llama.engine.messages import Begin, Decode, Failed, Join, Joined, Loaded, Start, ToRank
from lite_llama.engine.runner import Runner
from lite_llama.models.decoder import Decoder
from lite_llama.models.loader import Precision, load_decoder, random_decoder, read_config
from lite_llama.models.presets import preset_config
from lite_llama.models.ranks import RankGroup
from lite_llama.models.shards import Share


def main(fd: int) -> None:
    """Serve rank 0, whose pipe is open as `fd`, until it closes. Never returns."""
    follow_parent()
    os.set_inheritable(fd, False)  # noqa: FBT003
    pipe = Connection(fd)
    code = 0
    try:
        serve(pipe)
    except EOFError:
        pass  # rank 0 has ended
    except BaseException as error:  # noqa: BLE001 - whatever it is, rank 0 shall know
        code = 1
        # If another rank has died, rank 0 shall see that first, and not what came of it here.
        time.sleep(0.1)
        with suppress(OSError):
            pipe.send_bytes(msgspec.msgpack.encode(Failed(_one_line(error))))
            traceback.print_exc()
    # Threads of gloo or NCCL may wait for a rank that is gone.
    os._exit(code)


def serve(pipe: Connection) -> None:
    """Load, meet, and follow rank 0 step by step; EOFError when it has ended."""
    start = _next(pipe)
    if not isinstance(start, Start):
        raise AssertionError(f"the first message is {start!r}")
    plan = _plan_of(start)
    if plan.device.type == "cuda":
        torch.cuda.set_device(plan.device)
    else:
        torch.set_num_threads(start.num_threads)
    ranks = RankGroup(Share(start.rank, plan.tensor_parallel_size))
    decoder = _load(start, plan, ranks)
    _say(pipe, Loaded())
    runner: Runner | None = None
    with torch.inference_mode():
        while True:
            message = _next(pipe)
            if isinstance(message, Join):
                ranks.join(Path(start.store), plan.device)
                _say(pipe, Joined(free_memory(plan.device)))
            elif isinstance(message, Begin):
                runner = Runner(decoder, plan, message.num_blocks)
            elif runner is not None:
                follow(runner, message, ranks)


def follow(runner: Runner, message: ToRank, ranks: RankGroup) -> None:
    """Compute a step; its logits are rank 0's to use."""
    if isinstance(message, Inputs):
        unread: Unread | None = None
        if count := len(message.unread_rows):
            empty = torch.empty(count, dtype=torch.int64, device=runner.plan.device)
            unread = Unread(ranks.broadcast(empty), range(count))
        runner.compute(message, unread)
    elif isinstance(message, Decode) and isinstance(runner.graphs, SharedGraphs):
        runner.graphs.follow(message, ranks)
    else:
        raise AssertionError(f"a step is {message!r}")


def _load(start: Start, plan: EnginePlan, ranks: RankGroup) -> Decoder:
    placed: dict[str, Any] = {"device": plan.device, "num_positions": plan.max_model_len}
    if start.preset is not None:
        config = preset_config(start.preset)
        return random_decoder(config, plan.precision, ranks=ranks, **placed)
    if start.model is None:
        raise AssertionError("there is neither a model nor a preset")
    checkpoint = open_checkpoint(start.model)
    config = read_config(checkpoint)
    return load_decoder(checkpoint, config, plan.precision, ranks=ranks, **placed)


def _plan_of(start: Start) -> EnginePlan:
    plan = start.plan
    return EnginePlan(
        device=torch.device(start.device),
        precision=Precision(
            getattr(torch, plan.activations),
            None if plan.weights is None else getattr(torch, plan.weights),
        ),
        **plan.settings,  # type: ignore[arg-type]
    )


def _next(pipe: Connection) -> ToRank:
    message: ToRank = msgspec.msgpack.decode(pipe.recv_bytes(), type=ToRank)
    return message


def _say(pipe: Connection, message: Loaded | Joined) -> None:
    pipe.send_bytes(msgspec.msgpack.encode(message))


def _one_line(error: BaseException) -> str:
    return " ".join(f"{type(error).__name__}: {error}".split())[:500]
