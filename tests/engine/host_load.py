"""What the host does for a step, without a GPU: `python -m tests.engine.host_load [NUM_SEQS ...]`.

Scheduler, look-ahead, tables and inputs are real; nothing is computed, and recorded graphs are
empty. A GPU stands still for what of this is longer than its step.
"""

import argparse
import itertools
import time
from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from lite_llama.engine import cuda_graphs, head_graphs, prompt_graphs
from lite_llama.engine.config import EngineConfig, resolve
from lite_llama.engine.engine import Engine
from lite_llama.engine.sampling_params import SamplingParams
from lite_llama.models.loader import random_decoder
from tests.models.test_decode_chain import BASE

VOCAB, HIDDEN, PROMPT_LEN, NUM_TOKENS = 1024, 64, 112, 64
PARAMS = SamplingParams(temperature=0, max_tokens=NUM_TOKENS, ignore_eos=True)


class _Nothing:
    """In place of a recorded graph."""

    def replay(self) -> None:
        pass


class _DecodeGraphs(cuda_graphs.DecodeGraphs):
    def record(self, size: int, _: object, draw: object = None) -> tuple[_Nothing, Tensor]:  # type: ignore[override]
        return _Nothing(), torch.zeros(size).long() if draw else torch.zeros(size, VOCAB)


class _HeadGraphs(head_graphs.HeadGraphs):
    def run(self, _: Tensor, rows: Tensor) -> Tensor:
        return torch.zeros(len(rows), VOCAB)


class _PromptGraphs(prompt_graphs.PromptGraphs):
    def _record(self, size: int, _: int) -> tuple[_Nothing, Tensor]:  # type: ignore[override]
        return _Nothing(), torch.zeros(size, HIDDEN)


def build(max_num_seqs: int) -> Engine:
    config = replace(BASE, vocab_size=VOCAB, hidden_size=HIDDEN, num_layers=1, max_positions=2048)
    asked = EngineConfig(
        device="cpu", max_model_len=2048, max_num_seqs=max_num_seqs, max_num_batched_tokens=2048
    )
    plan = resolve(asked, config)
    decoder = random_decoder(config, plan.precision, device=plan.device, num_positions=2048)
    engine = Engine(decoder, plan, 32 * max_num_seqs, frozenset())
    zeros = torch.zeros

    def unpinned(*shape: object, pin_memory: bool = False, **options: object) -> Tensor:
        del pin_memory
        return zeros(*shape, **options)  # type: ignore[call-overload, no-any-return]

    torch.zeros, torch.cuda.graph_pool_handle = unpinned, lambda: None  # type: ignore[assignment]
    parts = decoder, engine.runner.kv_cache, plan
    logits = torch.empty(max_num_seqs, VOCAB)
    engine.runner.graphs = _DecodeGraphs(*parts, logits, choose=lambda *_: None)
    engine.runner.prompts = _PromptGraphs(*parts)
    engine.runner.heads = _HeadGraphs(decoder, plan, logits)
    torch.zeros = zeros  # type: ignore[assignment]
    engine.looks_ahead = True
    return engine


def closed_loop(
    engine: Engine, prompts: Sequence[list[int]], num_at_once: int, params: SamplingParams
) -> list[float]:
    """So many sequences at a time, each followed by the next prompt: when each token came.

    Seconds of perf_counter; tokens of one step have the same. No call finds what another one has
    left in the prefix cache.
    """
    waiting = iter(enumerate(prompts))
    salt = f"closed loop {time.perf_counter()}"
    times: list[float] = []

    def add(num_new: int) -> None:
        for number, prompt in itertools.islice(waiting, num_new):
            engine.add(str(number), prompt, params, cache_salt=salt)

    add(num_at_once)
    while engine.has_requests:
        outputs = engine.step()
        times += [time.perf_counter()] * len(outputs)
        add(sum(output.finish_reason is not None for output in outputs))
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("sequences", nargs="*", type=int, default=[1, 8, 64, 256])
    given = parser.parse_args()
    torch.set_num_threads(1)
    engine = build(max(given.sequences))
    for num_at_once in given.sequences:
        prompts = [
            [(number * 131 + at * 7) % VOCAB for at in range(PROMPT_LEN)]
            for number in range(8 * max(num_at_once, 8))
        ]
        closed_loop(engine, prompts[:num_at_once], num_at_once, PARAMS)
        begun = time.perf_counter()
        times = closed_loop(engine, prompts, num_at_once, PARAMS)
        seconds, steps = times[-1] - begun, len(set(times))
        print(
            f"{num_at_once} at a time: {seconds / steps * 1e3:.3f} ms a step of "
            f"{len(times) / steps:.1f} tokens, {len(times) / seconds:.0f} tokens/s at most"
        )


if __name__ == "__main__":
    main()
