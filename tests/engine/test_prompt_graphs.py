"""Padded steps compute what plain ones do; recorded on a GPU, they give the same bits."""

import random
from dataclasses import replace

import pytest
import torch

from lite_llama import EngineConfig, SamplingParams
from lite_llama.cache.kv_cache import KVCache
from lite_llama.engine import batch
from lite_llama.engine.config import EnginePlan, resolve
from lite_llama.engine.device_table import DeviceTable
from lite_llama.engine.engine import Engine
from lite_llama.engine.head_graphs import HeadGraphs
from lite_llama.engine.prompt_graphs import MAX_PROMPTS, PromptGraphs
from lite_llama.engine.request import Request
from lite_llama.engine.scheduler import Scheduled
from lite_llama.models.decoder import Decoder
from lite_llama.models.loader import Precision, random_decoder
from tests.models.test_decode_chain import BASE

CPU = torch.device("cpu")
CONFIG = replace(BASE, max_positions=256)
BLOCK_SIZE = 8
NUM_BLOCKS = 96


def planned(*sizes: tuple[int, int], seed: int = 0) -> list[Scheduled]:
    """Shares of requests that have `computed` tokens and get `new` ones, in shuffled blocks."""
    draw = random.Random(seed)
    free = draw.sample(range(NUM_BLOCKS), NUM_BLOCKS)
    found = []
    for number, (computed, new) in enumerate(sizes):
        tokens = [draw.randrange(97) for _ in range(computed + new)]
        request = Request(str(number), tokens, SamplingParams(), 0, frozenset(), 256)
        request.num_computed_tokens = computed
        request.blocks = [free.pop() for _ in range(-(-(computed + new) // BLOCK_SIZE))]
        found.append(Scheduled(request, new, draws_token=True))
    return batch.Rows().order(found)


def fill(decoder: Decoder, cache: KVCache, shares: list[Scheduled]) -> None:
    """Compute the tokens that count as computed."""
    for share in shares:
        request, count = share.request, share.request.num_computed_tokens
        if count:
            request.num_computed_tokens = 0
            inputs = batch.build([Scheduled(request, count, draws_token=False)], BLOCK_SIZE)
            decoder.hidden(inputs.on(CPU, None), cache)
            request.num_computed_tokens = count


@pytest.mark.parametrize(
    "sizes",
    [
        [(0, 5)],
        [(0, 16), (24, 9)],
        [(7, 1), (0, 3), (31, 1), (8, 20)],
        [(3 + i, 1) for i in range(20)] + [(0, 7), (5, 2)],
    ],
    ids=["one prompt", "a full size", "decodes beside prompts", "many decodes"],
)
def test_a_padded_step_has_the_rows_of_a_plain_one(sizes: list[tuple[int, int]]) -> None:
    torch.manual_seed(1)
    exact = Precision(torch.float32, torch.float32)
    decoder = random_decoder(CONFIG, exact, device=CPU, num_positions=256)
    asked = EngineConfig(
        device="cpu", dtype="float32", block_size=BLOCK_SIZE, max_num_seqs=24, enforce_eager=True
    )
    plan = resolve(asked, CONFIG)
    shares = planned(*sizes)
    inputs = batch.build(shares, BLOCK_SIZE)
    assert PromptGraphs.fits(inputs)
    shape = (CONFIG.num_layers, NUM_BLOCKS, BLOCK_SIZE, CONFIG.num_kv_heads, CONFIG.head_dim)
    caches = [KVCache.allocate(shape, torch.float32, CPU) for _ in range(2)]
    for cache in caches:
        for layer in cache.layers:
            layer.k.zero_()
            layer.v.zero_()
        fill(decoder, cache, shares)
    want = decoder.hidden(inputs.on(CPU, None), caches[0])
    padded = PromptGraphs(decoder, caches[1], plan)
    other = planned((0, 9), (2, 1), seed=5)  # what a step before has left in the buffers
    padded.run(batch.build(other, BLOCK_SIZE), None)
    for ours, theirs in zip(caches[1].layers, caches[0].layers, strict=True):
        ours.k.copy_(theirs.k)
        ours.v.copy_(theirs.v)
    got = padded.run(inputs, None)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-5)
    for ours, theirs in zip(caches[1].layers, caches[0].layers, strict=True):
        torch.testing.assert_close(ours.k, theirs.k, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(ours.v, theirs.v, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("rows", [[4], [0, 9, 5], [*range(11)]])
def test_padded_logits_begin_with_those_of_the_rows(rows: list[int]) -> None:
    torch.manual_seed(2)
    exact = Precision(torch.float32, torch.float32)
    decoder = random_decoder(CONFIG, exact, device=CPU, num_positions=256)
    asked = EngineConfig(device="cpu", dtype="float32", max_num_seqs=12, enforce_eager=True)
    buffer, hidden = torch.zeros(12, CONFIG.vocab_size), torch.randn(20, CONFIG.hidden_size)
    heads = HeadGraphs(decoder, resolve(asked, CONFIG), buffer)
    got = heads.run(hidden, torch.tensor(rows))
    assert len(got) == {1: 1, 3: 4, 11: 12}[len(rows)]
    assert got.data_ptr() == buffer.data_ptr()
    want = decoder.logits(hidden[rows])
    torch.testing.assert_close(got[: len(rows)], want, rtol=1e-5, atol=1e-5)


def test_steps_that_are_too_large_do_not_fit() -> None:
    assert not PromptGraphs.fits(batch.build(planned(*[(0, 2)] * (MAX_PROMPTS + 1)), 8))
    assert PromptGraphs.fits(batch.build(planned(*[(0, 2)] * MAX_PROMPTS), 8))


def test_a_device_table_follows_lists_that_grow_move_and_are_replaced() -> None:
    table = DeviceTable(4, 6, CPU)
    first, second = [5, 6], [7]
    table.write(1, [first, second])
    assert table.values[1:3, :2].tolist() == [[5, 6], [7, 0]]
    first.append(9)
    table.write(1, [first, second])
    assert table.values[1, :3].tolist() == [5, 6, 9]
    table.write(1, [second, first])
    assert table.values[1, 0] == 7
    assert table.values[2, :3].tolist() == [5, 6, 9]
    # As long as the one it replaces: a sequence that was preempted and has come back.
    table.write(2, [[1, 2, 3]])
    assert table.values[2, :3].tolist() == [1, 2, 3]
    assert table.values[0].tolist() == [0] * 6


needs_gpu = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: no CUDA graphs")


def gpu_plan(*, eager: bool, **settings: int) -> EnginePlan:
    asked = EngineConfig(
        device="cuda", dtype="bfloat16", max_num_seqs=4, enforce_eager=eager, **settings
    )
    return resolve(asked, replace(CONFIG, hidden_size=128, max_positions=4096))


@needs_gpu
@pytest.mark.parametrize("chunk", [2048, 96])
def test_recorded_prompts_give_the_tokens_of_eager_ones(chunk: int) -> None:
    config = replace(CONFIG, hidden_size=128, max_positions=4096, vocab_size=1000)
    torch.manual_seed(3)
    decoder = random_decoder(
        config,
        Precision(torch.bfloat16, torch.bfloat16),
        device=torch.device("cuda"),
        num_positions=4096,
    )
    draw = random.Random(4)
    lengths = [1, 15, 16, 17, 130, 700, 2100, 3, 40, *(draw.randrange(2, 90) for _ in range(40))]
    prompts = [[draw.randrange(1000) for _ in range(length)] for length in lengths]

    def run(*, eager: bool) -> dict[str, list[int]]:
        plan = gpu_plan(eager=eager, max_num_batched_tokens=chunk)
        engine = Engine(decoder, plan, 2048, frozenset())
        tokens: dict[str, list[int]] = {str(i): [] for i in range(len(prompts))}
        waiting = list(zip(tokens, prompts, strict=True))
        while waiting or engine.has_requests:
            for number, prompt in waiting[:3]:
                params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)
                engine.add(number, prompt, params)
            del waiting[:3]
            for output in engine.step():
                tokens[output.request_id].append(output.token_id)
        engine.scheduler.pool.check()
        return tokens

    # Without the chain, which sums in another order and has no eager form.
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("lite_llama.models.decode_chain.fits", lambda *_: False)
        want = run(eager=True)
        assert run(eager=False) == want
