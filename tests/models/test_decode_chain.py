"""The fused chain computes what the decoder computes: here with the operators' references."""

from dataclasses import replace

import pytest
import torch

from lite_llama.cache.kv_cache import KVCache
from lite_llama.kernel_lib.gpu import H200
from lite_llama.models import decode_chain
from lite_llama.models.chain_launches import choose_launches
from lite_llama.models.config import ModelConfig, RopeConfig
from lite_llama.models.inputs import ForwardBatch
from lite_llama.models.loader import Precision, random_decoder

BASE = ModelConfig(
    family="llama",
    vocab_size=97,
    hidden_size=48,
    intermediate_size=80,
    num_layers=2,
    num_q_heads=6,
    num_kv_heads=2,
    head_dim=16,
    norm_eps=1e-5,
    max_positions=64,
    rope=RopeConfig(theta=1e4, rotary_dim=16),
)
EXACT = Precision(torch.float32, torch.float32)
BLOCK_SIZE = 4


def _batch(token_ids: list[int], start: int, *, decodes: bool) -> ForwardBatch:
    """Tokens of one sequence whose blocks are 3, 1, 2, 0 in that order."""
    blocks, count = [3, 1, 2, 0], len(token_ids)
    positions = range(start, start + count)
    slots = [blocks[p // BLOCK_SIZE] * BLOCK_SIZE + p % BLOCK_SIZE for p in positions]
    return ForwardBatch(
        token_ids=torch.tensor(token_ids),
        positions=torch.tensor(list(positions)),
        slot_mapping=torch.tensor(slots),
        block_table=torch.tensor([blocks], dtype=torch.int32),
        seq_lens=torch.tensor([start + count], dtype=torch.int32),
        cu_seqlens_q=torch.tensor([0] if decodes else [0, count], dtype=torch.int32),
        num_decode_seqs=1 if decodes else 0,
        max_q_len=0 if decodes else count,
    )


def _two_caches() -> list[KVCache]:
    shape = (2, 4, BLOCK_SIZE, 2, 16)
    return [KVCache.allocate(shape, torch.float32, torch.device("cpu")) for _ in range(2)]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"qkv_bias": True},
        {"o_bias": True},
        {"qk_norm": True},
        {"tied_head": True},
        {"window": 5},
    ],
    ids=str,
)
def test_a_step_gives_the_decoders_logits_and_cache(changes: dict[str, object]) -> None:
    torch.manual_seed(1)
    config = replace(BASE, **changes)  # type: ignore[arg-type]
    decoder = random_decoder(config, EXACT, device=torch.device("cpu"), num_positions=64)
    caches = _two_caches()
    prompt = torch.randint(0, 97, (9,)).tolist()
    for cache in caches:
        decoder.forward(_batch(prompt, 0, decodes=False), cache)
    step = _batch([5], 9, decodes=True)
    want = decoder.forward(step, caches[0])
    got = decode_chain.forward(decoder, step, caches[1], choose_launches(config, 1, torch.float32))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(caches[1].layers, caches[0].layers, strict=True):
        written = slice(2 * BLOCK_SIZE, 2 * BLOCK_SIZE + 2)  # block 2 holds positions 8 and 9
        torch.testing.assert_close(ours.k.flatten(0, 1)[written], theirs.k.flatten(0, 1)[written])
        torch.testing.assert_close(ours.v.flatten(0, 1)[written], theirs.v.flatten(0, 1)[written])


def test_a_step_of_two_sequences_gives_the_decoders_logits() -> None:
    torch.manual_seed(1)
    decoder = random_decoder(BASE, EXACT, device=torch.device("cpu"), num_positions=64)
    caches = _two_caches()
    one, two = _batch([5], 5, decodes=True), _batch([11], 2, decodes=True)
    step = replace(
        one,
        token_ids=torch.cat((one.token_ids, two.token_ids)),
        positions=torch.cat((one.positions, two.positions)),
        slot_mapping=torch.tensor([1 * BLOCK_SIZE + 1, 2 * BLOCK_SIZE + 2]),
        block_table=torch.tensor([[3, 1], [2, 0]], dtype=torch.int32),
        seq_lens=torch.tensor([6, 3], dtype=torch.int32),
        num_decode_seqs=2,
    )
    for cache in caches:
        for layer in cache.layers:
            layer.k.fill_(0.25)
            layer.v.fill_(0.5)
    want = decoder.forward(step, caches[0])
    got = decode_chain.forward(decoder, step, caches[1], choose_launches(BASE, 2, torch.float32))
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)


def test_the_chain_is_for_few_tokens_on_a_gpu() -> None:
    decoder = random_decoder(BASE, EXACT, device=torch.device("cpu"), num_positions=64)
    assert not decode_chain.fits(decoder, 1)
    assert not decode_chain.fits(decoder, 9)


WIDE = replace(
    BASE, vocab_size=512, hidden_size=256, intermediate_size=512, num_q_heads=8, num_kv_heads=4,
    head_dim=32, rope=RopeConfig(theta=1e4, rotary_dim=32),
)  # fmt: skip


@pytest.mark.parametrize(
    ("num_tokens", "changes", "dtype", "chained"),
    [
        (8, {}, torch.float32, True),
        (9, {}, torch.bfloat16, True),
        (16, {}, torch.bfloat16, True),
        (16, {}, torch.float32, False),  # no rings
        (16, {"intermediate_size": 576}, torch.bfloat16, False),  # one that is none
        (16, {"hidden_size": 2304}, torch.bfloat16, False),  # x does not stay in registers
    ],
)
def test_nine_to_sixteen_sequences_take_rings_or_the_separate_operators(
    monkeypatch: pytest.MonkeyPatch,
    num_tokens: int,
    changes: dict[str, int],
    dtype: torch.dtype,
    *,
    chained: bool,
) -> None:
    monkeypatch.setattr(decode_chain, "gpu_spec", lambda _: H200)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True)
    config, precision = replace(WIDE, **changes), Precision(dtype, dtype)  # type: ignore[arg-type]
    decoder = random_decoder(config, precision, device=torch.device("cpu"), num_positions=64)
    assert decode_chain.fits(decoder, num_tokens) == chained
    assert (decode_chain.engine_launches(decoder, num_tokens) is not None) == chained


@pytest.mark.parametrize("count", [1, 2, 8, 11, 16])
def test_a_step_of_many_sequences_is_near_the_decoders(count: int) -> None:
    """On a GPU by the chain's kernels, with the launches that the engine takes."""
    torch.manual_seed(1)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    precision = Precision(torch.bfloat16, torch.bfloat16)
    decoder = random_decoder(WIDE, precision, device=device, num_positions=64)
    shape = (2, 2 * count, BLOCK_SIZE, 4, 32)
    caches = [KVCache.allocate(shape, torch.bfloat16, device) for _ in range(2)]
    for ours, theirs in zip(caches[1].layers, caches[0].layers, strict=True):
        for x, y in ((ours.k, theirs.k), (ours.v, theirs.v)):
            x.copy_(y.normal_())
    at = torch.arange(count, device=device)
    positions = at % 8
    blocks = torch.stack((2 * at + 1, 2 * at), 1)
    step = ForwardBatch(
        token_ids=at * 31 % 512,
        positions=positions,
        slot_mapping=blocks[at, positions // BLOCK_SIZE] * BLOCK_SIZE + positions % BLOCK_SIZE,
        block_table=blocks.int(),
        seq_lens=(positions + 1).int(),
        cu_seqlens_q=torch.zeros(1, dtype=torch.int32, device=device),
        num_decode_seqs=count,
        max_q_len=0,
    )
    launches = choose_launches(WIDE, count, torch.bfloat16)
    assert device.type == "cpu" or launches == decode_chain.engine_launches(decoder, count)
    want = decoder.forward(step, caches[0]).float()
    got = decode_chain.forward(decoder, step, caches[1], launches).float()
    assert float((got - want).square().mean() / want.square().mean()) < 1e-3
    for ours, theirs in zip(caches[1].layers, caches[0].layers, strict=True):
        torch.testing.assert_close(ours.k, theirs.k, rtol=0.05, atol=0.05)
        torch.testing.assert_close(ours.v, theirs.v, rtol=0.05, atol=0.05)
