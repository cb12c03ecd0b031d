"""A model shared by two GPUs, over NCCL: `make gpu2`. Random weights in the shapes of real models.

What ranks do and how they end is tested without a GPU in tests/engine/test_tensor_parallel.py.
"""

import gc
import re
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import torch
from torch import Tensor

from lite_llama.bench.latency import build_engine
from lite_llama.engine.config import EngineConfig, resolve
from lite_llama.engine.cuda_graphs import SharedGraphs
from lite_llama.engine.engine import Engine
from lite_llama.engine.sampling_params import SamplingParams
from lite_llama.models.decoder import Block, Decoder
from lite_llama.models.families import find_family
from lite_llama.models.layers import Linear
from lite_llama.models.loader import random_decoder
from lite_llama.models.presets import find_preset
from lite_llama.models.ranks import RankGroup
from lite_llama.models.shards import Share
from tests.server.servers import ServerProcess, check_death
from tests.server.test_gpu import preset_server_process

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two CUDA devices"),
]

ROOT = Path(__file__).parents[2]
NUM_BLOCKS = 256
SETTINGS: dict[str, Any] = {
    "device": "cuda",
    "max_model_len": 1024,
    "max_num_seqs": 8,
    "num_blocks": NUM_BLOCKS,
    "prefix_caching": False,
}
PROMPTS = [list(range(100 + n, 100 + n + 40)) for n in range(4)]
GREEDY = SamplingParams(temperature=0, max_tokens=48, ignore_eos=True)
# Where two tokens are as close as that, rounding may decide between them: bfloat16 logits of 4 to 8
# lie 0.03 apart.
CLOSE = 0.07


@contextmanager
def shared(preset: str, **settings: Any) -> Iterator[Engine]:
    """An engine whose model two GPUs share."""
    asked = EngineConfig(tensor_parallel_size=2, **{**SETTINGS, **settings})
    engine = build_engine(asked, None, preset)
    try:
        yield engine
    finally:
        engine.close()


def alone(preset: str, **settings: Any) -> Engine:
    """An engine of one GPU with the same weights."""
    metadata = find_preset(preset)
    config = find_family("hf", metadata).read_hf_config(metadata)
    plan = resolve(EngineConfig(**{**SETTINGS, **settings}), config)
    drawn = random_decoder(
        config,
        plan.precision,
        device=torch.device("cuda", 0),
        num_positions=plan.max_model_len,
        ranks=RankGroup(Share(0, 1)),
    )
    return Engine(_by_itself(drawn), plan, NUM_BLOCKS, frozenset())


def _by_itself(decoder: Decoder) -> Decoder:
    """The whole model without the exchanges of its one rank."""

    def plain(linear: Linear) -> Linear:
        return Linear(linear.weight, linear.bias)

    def block(one: Block) -> Block:
        return replace(
            one,
            attention=replace(one.attention, o=plain(one.attention.o)),
            mlp=replace(one.mlp, down=plain(one.mlp.down)),
        )

    blocks = tuple(block(one) for one in decoder.blocks)
    return replace(decoder, blocks=blocks, head=plain(decoder.head))


def run(engine: Engine, params: Sequence[SamplingParams]) -> list[list[int]]:
    """The tokens of each prompt."""
    tokens: list[list[int]] = [[] for _ in params]
    for number, each in enumerate(params):
        engine.add(str(number), PROMPTS[number], each)
    while engine.has_requests:
        for output in engine.step():
            tokens[int(output.request_id)].append(output.token_id)
    engine.scheduler.pool.check()
    assert engine.scheduler.pool.num_used == 0
    return tokens


def gap(logits: Tensor) -> float:
    """How far the likeliest token is ahead of the next one."""
    best = logits.topk(2).values
    return float(best[0] - best[1])


@pytest.mark.parametrize("preset", ["llama-3.2-1b", "qwen2.5-0.5b", "qwen3-0.6b"])
def test_two_gpus_give_the_tokens_of_one(preset: str) -> None:
    with shared(preset, dtype="bfloat16") as engine:
        assert isinstance(engine.runner.graphs, SharedGraphs)
        given = run(engine, [GREEDY] * 4)
        again = run(engine, [GREEDY] * 4)
    assert again == given
    reference = alone(preset, dtype="bfloat16")
    expected = run(reference, [GREEDY] * 4)
    num_equal = 0
    for prompt, ours, theirs in zip(PROMPTS, given, expected, strict=True):
        for at, (our, their) in enumerate(zip(ours, theirs, strict=True)):
            if our != their:
                logits = reference.logits([*prompt, *theirs[:at]])
                assert gap(logits[-1]) < CLOSE, f"token {at} of {len(theirs)}"
                break
            num_equal += 1
    print(f"{preset}: {num_equal} tokens before the first close call of each sequence")
    assert num_equal > 8


def test_two_gpus_give_the_logits_of_one_in_float32() -> None:
    ids = list(range(1000, 1100))
    with shared("qwen2.5-0.5b", dtype="float32") as engine:
        given = engine.logits(ids)
    expected = alone("qwen2.5-0.5b", dtype="float32").logits(ids)
    difference = (given - expected).abs().max()
    print(f"largest difference {difference:.2g}, logits are {expected.std():.2g} wide")
    assert difference < 0.02 * expected.std()


def test_graphs_give_the_tokens_of_eager_steps() -> None:
    """Drawn in the graph, drawn and broadcast unread, and drawn after the host has read."""
    kinds = [
        [GREEDY] * 4,
        [replace(GREEDY, temperature=1.0, seed=n, top_k=40) for n in range(4)],
        [GREEDY, replace(GREEDY, frequency_penalty=0.5), replace(GREEDY, logprobs=2), GREEDY],
    ]
    found = []
    for eager in (False, True):
        with shared("qwen2.5-0.5b", dtype="bfloat16", enforce_eager=eager) as engine:
            assert (engine.runner.graphs is None) == eager
            found.append([run(engine, params) for params in kinds])
    assert found[0] == found[1]


def test_closed_engines_give_back_the_memory_of_both_gpus() -> None:
    """Row L15. What the first leaves behind (contexts, libraries) is where it starts."""
    free: list[tuple[int, int]] = []
    for _ in range(3):
        with shared("qwen2.5-0.5b") as engine:
            run(engine, [replace(GREEDY, max_tokens=4)])
        del engine
        gc.collect()
        torch.cuda.empty_cache()
        free.append((torch.cuda.mem_get_info(0)[0], torch.cuda.mem_get_info(1)[0]))
    print(f"free after each: {free}")
    for after in free[1:]:
        assert abs(after[0] - free[0][0]) < 100e6
        assert abs(after[1] - free[0][1]) < 100e6
    assert not [each for each in threading.enumerate() if each.name == "ranks"]


@contextmanager
def shared_server(folder: Path, step_timeout_s: float) -> Iterator[ServerProcess]:
    """A server whose model two GPUs share; no process of it is left at the end."""
    flags = ("--max-num-seqs", "4", "--num-blocks", "512", "--tensor-parallel-size", "2")
    timeout = ("--step-timeout", str(step_timeout_s))
    with preset_server_process(folder, *flags, *timeout) as server:
        processes = server.family
        yield server
        assert psutil.wait_procs(processes, 5)[1] == []


def rank_of(server: ServerProcess) -> psutil.Process:
    """The process of the other rank."""
    [found] = [each for each in server.family if "tp_worker" in " ".join(each.cmdline())]
    return found


def test_a_killed_gpu_rank_ends_the_process_with_an_error(tmp_path: Path) -> None:
    """L8, and X1: NCCL takes connections on loopback only."""
    with shared_server(tmp_path, 30) as server:
        addresses = [
            connection.laddr.ip
            for each in server.family
            for connection in each.net_connections()
            if connection.status == psutil.CONN_LISTEN
        ]
        assert set(addresses) <= {"127.0.0.1", "::1"}
        rank = rank_of(server)
        check_death(server, 0, fault=rank.kill)
        assert re.search(r"the engine has died: .*rank 1 has died", server.read_log())


def test_a_stopped_gpu_rank_ends_the_process_with_an_error(tmp_path: Path) -> None:
    """L9. The watchdog looks once a second."""
    with shared_server(tmp_path, 3) as server:
        begun = time.monotonic()
        check_death(server, 3 + 1, fault=rank_of(server).suspend, exit_limit_s=1)
        print(f"ended after {time.monotonic() - begun:.1f} s")
