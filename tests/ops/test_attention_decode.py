import dataclasses

import pytest
import torch
from torch import Tensor

from lite_llama.errors import OperatorError
from lite_llama.kernel_lib.gpu import H200
from lite_llama.ops import attention_decode
from lite_llama.ops.attention_decode import kernel, reference
from lite_llama.ops.attention_decode.launch import Launch, Problem, choose_launch
from tests.ops.attention_inputs import Heads, Ragged, answer, ragged, torch_attention
from tests.ops.compare import (
    DTYPES,
    assert_close_to_reference,
    nmse,
    poison_new_outputs,
    same_bits,
)
from tests.ops.tolerances import ATTENTION

# Chunks of 32 keys and fewer programs than chunks: every path within a few hundred keys.
SPLIT = Launch(4, 32, 2, 32, num_warps=4, num_stages=2)


def decode(
    kv_lens: list[int], heads: Heads, dtype: torch.dtype, device: torch.device, block_size: int
) -> Ragged:
    return ragged([1] * len(kv_lens), kv_lens, heads, dtype, device, block_size)


def run(
    x: Ragged, how: Launch | None = None, window: int | None = None, sinks: Tensor | None = None
) -> Tensor:
    assert x.block_table is not None
    arguments = {
        "block_table": x.block_table,
        "seq_lens": x.seq_lens,
        "scale": x.q.shape[-1] ** -0.5,
        "window": window,
        "sinks": sinks,
    }
    if how is None:
        return kernel.attention_decode(x.q, x.k, x.v, **arguments)
    return kernel.launch(how, x.q, x.k, x.v, **arguments)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("how", [None, SPLIT])
def test_lengths_differ_within_a_batch(
    device: torch.device, dtype: torch.dtype, how: Launch | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = decode([30, 1, 32, 33, 128, 129, 300], Heads(4, 2, 32), dtype, device, 16)
    want, by_torch = answer(x), torch_attention(x)
    poison_new_outputs(monkeypatch)
    assert_close_to_reference(run(x, how), want, ATTENTION, by_torch)


@pytest.mark.parametrize("how", [None, SPLIT])
def test_sixteen_heads_of_128_over_30_keys(device: torch.device, how: Launch | None) -> None:
    x = decode([30], Heads(16, 2, 128), torch.float16, device, 16)
    assert_close_to_reference(run(x, how), answer(x), ATTENTION, torch_attention(x))


@pytest.mark.parametrize("q_per_kv", [1, 3, 4, 7, 8])
def test_query_heads_share_key_heads(device: torch.device, q_per_kv: int) -> None:
    x = decode([77, 140], Heads(2 * q_per_kv, 2, 64), torch.bfloat16, device, 16)
    assert_close_to_reference(run(x, SPLIT), answer(x), ATTENTION, torch_attention(x))


@pytest.mark.parametrize(
    ("head_dim", "block_size"),
    [*((d, 16) for d in (64, 80, 96, 128)), *((128, size) for size in (8, 24, 32, 64, 128, 256))],
)
def test_head_dimensions_and_block_sizes(
    device: torch.device, head_dim: int, block_size: int
) -> None:
    x = decode([block_size + 1, 130], Heads(3, 1, head_dim), torch.float16, device, block_size)
    assert_close_to_reference(run(x, SPLIT), answer(x), ATTENTION, torch_attention(x))


def test_each_cache_has_strides_of_its_own(device: torch.device) -> None:
    x = decode([77, 140], Heads(4, 2, 64), torch.bfloat16, device, 16)
    wider = x.v.new_full((*x.v.shape[:2], 3, 67), float("nan"))
    v = wider[:, :, 1:, 2:-1]  # rows that are aligned to 2 bytes
    v.copy_(x.v)
    assert same_bits(run(dataclasses.replace(x, v=v), SPLIT), run(x, SPLIT))


def test_a_chunk_holds_whole_tiles_whatever_is_asked_for(device: torch.device) -> None:
    x = decode([300, 63], Heads(4, 2, 64), torch.bfloat16, device, 16)
    asked, rounded = (dataclasses.replace(SPLIT, max_chunks=8, min_chunk=n) for n in (40, 64))
    assert same_bits(run(x, asked), run(x, rounded))


@pytest.mark.parametrize("window", [1, 50, 128, 1000])
@pytest.mark.parametrize("with_sinks", [False, True])
def test_windows_and_sinks(device: torch.device, window: int, *, with_sinks: bool) -> None:
    x = decode([200, 40], Heads(4, 2, 64), torch.float16, device, 16)
    sinks = torch.tensor([-1.0, 0.0, 3.0, 12.0], device=device) if with_sinks else None
    tokens = [slice(max(0, n - window), n) for n in (200, 40)]
    seen = dataclasses.replace(
        x,
        keys=[k[at] for k, at in zip(x.keys, tokens, strict=True)],
        values=[v[at] for v, at in zip(x.values, tokens, strict=True)],
    )
    for how in (None, SPLIT):
        got = run(x, how, window=window, sinks=sinks)
        assert_close_to_reference(got, answer(seen, sinks=sinks), ATTENTION)


def test_padding_rows_of_length_zero_give_zeros(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    x = decode([0, 5, 0], Heads(2, 1, 16), torch.bfloat16, device, 16)
    want = answer(x)
    poison_new_outputs(monkeypatch)
    got = run(x)
    assert torch.equal(got[[0, 2]], torch.zeros_like(got[[0, 2]]))
    assert nmse(got[1], want[1]) < ATTENTION[torch.bfloat16]


@pytest.mark.parametrize("window", [None, 40])
@pytest.mark.parametrize(
    "how",
    [
        SPLIT,
        Launch(4, 64, 4, 32, num_warps=4, num_stages=2),
        Launch(4, 64, 2, 32, num_warps=4, num_stages=2, first_tiles=2),
        Launch(4, 64, 4, 16, num_warps=4, num_stages=3, first_tiles=4),
    ],
)
def test_a_dependent_launch_gives_the_same_result(
    device: torch.device, how: Launch, window: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its first tile, or tiles as one, is read before the wait, and the newest key of it after.

    More than two chunks are folded in another order: an element may round the other way.
    """
    if device.type == "cpu":  # the interpreter has no inline assembly
        monkeypatch.setattr(kernel, "_after_loads", lambda x: x)
    x = decode([0, 1, 31, 32, 33, 64, 65, 300], Heads(4, 2, 32), torch.bfloat16, device, 16)
    want = run(x, how, window)
    poison_new_outputs(monkeypatch)
    arguments = {"block_table": x.block_table, "seq_lens": x.seq_lens, "scale": 32**-0.5}
    arguments |= {"window": window, "sinks": None, "overlap": 0.0}
    got = kernel.launch(how, x.q, x.k, x.v, **arguments)
    assert nmse(got, want) < 1e-6
    fewer = dataclasses.replace(how, max_chunks=min(how.max_chunks, how.programs_per_head))
    assert same_bits(kernel.launch(fewer, x.q, x.k, x.v, **arguments), got)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_sequence_gives_the_same_bits_alone_and_in_a_batch(
    device: torch.device, dtype: torch.dtype
) -> None:
    lengths = [300, 40, 1, 513]
    x = decode(lengths, Heads(4, 1, 64), dtype, device, 16)
    assert x.block_table is not None
    together = run(x)
    for i in range(len(lengths)):
        alone = kernel.attention_decode(
            x.q[i : i + 1],
            x.k,
            x.v,
            block_table=x.block_table[i : i + 1],
            seq_lens=x.seq_lens[i : i + 1],
            scale=0.125,
            window=None,
            sinks=None,
        )
        assert same_bits(alone, together[i : i + 1])


# In chunks of 32 keys: none, one, and whole and broken groups of 4 and blocks of 16.
CHUNKED = [0, 1, 3 * 32, 5 * 32, 17 * 32 - 5, 32 * 32]


@pytest.mark.parametrize(("window", "with_sinks"), [(None, False), (19 * 32, True)])
def test_how_many_programs_share_a_sequence_does_not_change_a_bit(
    device: torch.device, window: int | None, *, with_sinks: bool
) -> None:
    x = decode(CHUNKED, Heads(2, 1, 16), torch.float32, device, 16)
    sinks = torch.tensor([-1.0, 3.0], device=device) if with_sinks else None
    results = [
        run(x, Launch(32, 32, n, 32, num_warps=4, num_stages=2), window, sinks)
        for n in (1, 2, 3, 4, 7, 8, 16, 32)
    ]
    assert all(same_bits(result, results[0]) for result in results)
    begins = [max(0, n - window) if window else 0 for n in CHUNKED]
    seen = dataclasses.replace(
        x,
        keys=[k[at:] for k, at in zip(x.keys, begins, strict=True)],
        values=[v[at:] for v, at in zip(x.values, begins, strict=True)],
    )
    assert_close_to_reference(results[0], answer(seen, sinks=sinks), ATTENTION)


@pytest.mark.parametrize("window", [None, 19 * 32])
@pytest.mark.parametrize("num_programs", [1, 2, 5, 31])
def test_programs_shared_out_by_length_do_not_change_a_bit(
    device: torch.device, num_programs: int, window: int | None
) -> None:
    x = decode(CHUNKED, Heads(2, 1, 16), torch.float32, device, 16)
    evenly = Launch(32, 32, num_programs, 32, num_warps=4, num_stages=2)
    by_length = dataclasses.replace(evenly, by_length=True)
    assert same_bits(run(x, by_length, window), run(x, evenly, window))


@pytest.mark.parametrize("lengths", [[9 * 32] + [1] * 260, [0, 0], [1] * 32 + [40 * 32]])
def test_programs_shared_out_among_many_or_none(device: torch.device, lengths: list[int]) -> None:
    """More sequences than are looked at in one go of few, and no key at all."""
    x = decode(lengths, Heads(1, 1, 16), torch.float32, device, 16)
    evenly = Launch(8, 32, 1, 32, num_warps=4, num_stages=2)
    by_length = dataclasses.replace(evenly, by_length=True)
    assert same_bits(run(x, by_length), run(x, evenly))


def test_more_blocks_than_are_folded_at_once_do_not_change_a_bit(device: torch.device) -> None:
    x = decode([70 * 32 + 1, 40 * 32], Heads(2, 1, 16), torch.float32, device, 16)
    results = [run(x, Launch(128, 32, n, 32, num_warps=4, num_stages=2)) for n in (1, 2, 16)]
    assert all(same_bits(result, results[0]) for result in results)
    assert_close_to_reference(results[0], answer(x), ATTENTION)


def test_one_launch_serves_all_lengths_and_leaves_no_trace(device: torch.device) -> None:
    x = decode([200, 150], Heads(2, 1, 32), torch.float16, device, 16)
    caches = (x.k.clone(), x.v.clone())
    first = run(x, SPLIT)
    x.seq_lens.copy_(torch.tensor([1, 33]))
    short = dataclasses.replace(
        x, keys=[x.keys[0][:1], x.keys[1][:33]], values=[x.values[0][:1], x.values[1][:33]]
    )
    assert_close_to_reference(run(x, SPLIT), answer(short), ATTENTION)
    x.seq_lens.copy_(torch.tensor([200, 150]))
    assert same_bits(run(x, SPLIT), first)
    assert same_bits(x.k, caches[0])
    assert same_bits(x.v, caches[1])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: there are no graphs to replay")
def test_a_graph_replays_for_other_lengths() -> None:
    x = decode([300, 2000], Heads(8, 2, 64), torch.bfloat16, torch.device("cuda"), 16)
    eager = run(x)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        out = run(x)
    for lengths in ([1, 0], [300, 2000], [129, 1500], [300, 2000]):
        x.seq_lens.copy_(torch.tensor(lengths))
        graph.replay()
        assert same_bits(out, run(x))
    assert same_bits(out, eager)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: offsets past 2^31 need 9 GiB")
def test_offsets_past_two_to_the_31_are_reached() -> None:
    x = decode([40], Heads(4, 1, 128), torch.bfloat16, torch.device("cuda"), 16)
    assert x.block_table is not None
    num_blocks = 2**31 // (16 * 128) + 8
    k, v = (x.k.new_empty(num_blocks, 16, 1, 128) for _ in range(2))
    k[-3:], v[-3:] = x.k, x.v
    x.block_table[0, :3] += num_blocks - 3
    assert same_bits(run(dataclasses.replace(x, k=k, v=v)), run_small(x, num_blocks))


def run_small(x: Ragged, num_blocks: int) -> Tensor:
    assert x.block_table is not None
    table = x.block_table.clone()
    table[0, :3] -= num_blocks - 3
    return run(dataclasses.replace(x, block_table=table))


def test_reference_agrees_with_float64() -> None:
    x = decode([30, 0, 77], Heads(6, 2, 16), torch.float32, torch.device("cpu"), 16)
    sinks = torch.randn(6)
    arguments = {"block_table": x.block_table, "seq_lens": x.seq_lens, "sinks": sinks}
    got = reference.attention_decode(x.q, x.k, x.v, scale=0.25, window=None, **arguments)
    assert nmse(got, answer(x, sinks=sinks)) < 1e-12
    assert torch.equal(got, attention_decode(x.q, x.k, x.v, **arguments))


def test_calls_against_the_contract_name_the_argument(device: torch.device) -> None:
    x = decode([30, 20], Heads(4, 2, 16), torch.float16, device, 16)
    good = {"block_table": x.block_table, "seq_lens": x.seq_lens}
    with pytest.raises(OperatorError, match=r"q has 3 heads, expected a multiple of k_cache's 2"):
        attention_decode(x.q[:, :3], x.k, x.v, **good)
    with pytest.raises(OperatorError, match=r"v_cache has dtype torch.float32"):
        attention_decode(x.q, x.k, x.v.float(), **good)
    with pytest.raises(OperatorError, match=r"k_cache has head_dim 8, expected 16 as q"):
        attention_decode(x.q, x.k[..., :8], x.v[..., :8], **good)
    with pytest.raises(OperatorError, match=r"seq_lens has shape \(1,\), expected \(2,\)"):
        attention_decode(x.q, x.k, x.v, **(good | {"seq_lens": x.seq_lens[:1]}))
    with pytest.raises(OperatorError, match=r"block_table has shape \(1, \d\), expected \(2, \d\)"):
        attention_decode(x.q, x.k, x.v, **(good | {"block_table": x.block_table[:1]}))
    with pytest.raises(OperatorError, match=r"window is 0, expected at least 1"):
        attention_decode(x.q, x.k, x.v, window=0, **good)


@pytest.mark.parametrize("num_kv_heads", [1, 2, 8, 32])
@pytest.mark.parametrize("max_kv_len", [16, 1000, 8192, 131072])
def test_where_a_sequence_is_cut_does_not_depend_on_the_batch(
    num_kv_heads: int, max_kv_len: int
) -> None:
    problems = [
        Problem(n, num_kv_heads, 4, 64, torch.bfloat16, max_kv_len) for n in (1, 8, 64, 256)
    ]
    launches = [choose_launch(problem, H200) for problem in problems]
    # How early tiles are loaded, and who sums which: not in what order.
    free = {"programs_per_head": 1, "num_stages": 1, "by_length": False}
    assert len({dataclasses.replace(how, **free) for how in launches}) == 1
    assert all(1 <= how.programs_per_head <= how.max_chunks <= 128 for how in launches)


@pytest.mark.parametrize(
    ("num_seqs", "head_dim", "launch"),
    [
        (1, 64, Launch(32, 256, 32, 64, 4, 5)),
        (8, 128, Launch(32, 256, 8, 32, 4, 3, by_length=True)),
        (64, 64, Launch(32, 256, 1, 64, 4, 3, by_length=True)),
        (256, 128, Launch(32, 256, 1, 32, 4, 3, by_length=True)),
    ],
)
def test_the_launch_is_the_best_measured_compromise(
    num_seqs: int, head_dim: int, launch: Launch
) -> None:
    problem = Problem(num_seqs, 8, 4, head_dim, torch.bfloat16, 131072)
    assert choose_launch(problem, H200) == launch


@pytest.mark.parametrize(
    ("num_seqs", "head_dim", "launch"),
    [
        (1, 64, Launch(32, 128, 32, 64, 4, 5, first_tiles=2)),
        (2, 64, Launch(16, 128, 16, 64, 4, 5, first_tiles=2)),
        (1, 128, Launch(32, 64, 32, 64, 4, 3)),
        (8, 64, Launch(8, 128, 8, 64, 2, 5, first_tiles=2)),
        (16, 64, Launch(8, 128, 8, 64, 2, 5, first_tiles=2)),
        (8, 128, Launch(8, 128, 8, 64, 4, 2)),
    ],
)
def test_sequences_in_a_chain_are_cut_for_latency(
    num_seqs: int, head_dim: int, launch: Launch
) -> None:
    problem = Problem(num_seqs, 8, 4, head_dim, torch.bfloat16, 131072, in_chain=True)
    assert choose_launch(problem, H200) == launch


def test_a_chain_has_no_more_chunks_than_the_block_table_holds() -> None:
    problem = Problem(1, 8, 4, 64, torch.bfloat16, 500, in_chain=True)
    assert choose_launch(problem, H200) == Launch(4, 128, 4, 64, 4, 5, first_tiles=2)
