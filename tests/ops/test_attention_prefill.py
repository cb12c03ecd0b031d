from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from lite_llama.errors import OperatorError
from lite_llama.kernel_lib.gpu import A100, B200, H200, INTERPRETER, RTX_5090
from lite_llama.ops import attention_prefill
from lite_llama.ops.attention_prefill import hopper, kernel, reference
from lite_llama.ops.attention_prefill.launch import (
    Launch,
    Problem,
    choose_launch,
    runs_on_hopper,
)
from tests.ops.attention_inputs import Heads, Ragged, answer, ragged, torch_attention
from tests.ops.compare import (
    DTYPES,
    assert_close_to_reference,
    nmse,
    non_contiguous,
    poison_new_outputs,
    same_bits,
)
from tests.ops.tolerances import ATTENTION

ON_GPU = torch.cuda.is_available()
needs_gpu = pytest.mark.skipif(not ON_GPU, reason="no GPU: too many programs to interpret")
needs_hopper = pytest.mark.skipif(
    not ON_GPU or torch.cuda.get_device_capability()[0] != 9,
    reason="no Hopper GPU: Gluon has no interpreter",
)


def run(
    x: Ragged,
    *,
    causal: bool = True,
    window: int | None = None,
    sinks: Tensor | None = None,
    scale: float | None = None,
) -> Tensor:
    arguments = arguments_of(x) | ({"scale": scale} if scale else {})
    return kernel.attention_prefill(
        x.q, x.k, x.v, causal=causal, window=window, sinks=sinks, **arguments
    )


def run_on_hopper(x: Ragged, *, causal: bool = True) -> Tensor:
    return hopper.launch(x.q, x.k, x.v, causal=causal, **arguments_of(x))


def arguments_of(x: Ragged) -> dict[str, Any]:
    return {
        "cu_seqlens_q": x.cu_seqlens_q,
        "seq_lens": x.seq_lens,
        "max_q_len": int(x.cu_seqlens_q.diff().max()),
        "block_table": x.block_table,
        "scale": x.q.shape[-1] ** -0.5,
        "out": torch.empty(x.q.shape, dtype=x.q.dtype, device=x.q.device),
    }


def last_queries(x: Ragged, i: int, num_queries: int) -> Ragged:
    """A batch of sequence i alone, and of its queries the last ones."""
    end = int(x.cu_seqlens_q[i + 1])
    assert x.block_table is not None
    return replace(
        x,
        q=x.q[end - num_queries : end],
        cu_seqlens_q=torch.tensor([0, num_queries], dtype=torch.int32, device=x.q.device),
        seq_lens=x.seq_lens[i : i + 1],
        block_table=x.block_table[i : i + 1],
    )


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize(
    ("q_len", "kv_len", "heads"),
    [(2, 2, Heads(1, 1, 4)), (5, 11, Heads(4, 2, 8)), (2, 20, Heads(16, 2, 128))],
)
@pytest.mark.parametrize("causal", [True, False])
def test_small_problems_in_every_dtype(
    device: torch.device,
    dtype: torch.dtype,
    q_len: int,
    kv_len: int,
    heads: Heads,
    *,
    causal: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = ragged([q_len], [kv_len], heads, dtype, device)
    want, by_torch = answer(x, causal=causal), torch_attention(x, causal=causal)
    poison_new_outputs(monkeypatch)
    assert_close_to_reference(run(x, causal=causal), want, ATTENTION, by_torch)


@pytest.mark.parametrize("block_size", [0, 16, 32, 64, 128, 256])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_ragged_batches_with_cached_prefixes(
    device: torch.device, dtype: torch.dtype, block_size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    # One query, a tile and one more, no prefix, and a sequence without new tokens.
    x = ragged([1, 129, 65, 0], [258, 129, 200, 7], Heads(2, 1, 64), dtype, device, block_size)
    want, by_torch = answer(x), torch_attention(x)
    poison_new_outputs(monkeypatch)
    assert_close_to_reference(run(x), want, ATTENTION, by_torch)


@pytest.mark.parametrize("q_per_kv", [1, 3, 4, 7, 8])
def test_query_heads_share_key_heads(device: torch.device, q_per_kv: int) -> None:
    x = ragged([20], [33], Heads(2 * q_per_kv, 2, 32), torch.float16, device, 16)
    assert_close_to_reference(run(x), answer(x), ATTENTION, torch_attention(x))


@pytest.mark.parametrize("head_dim", [64, 80, 96, 128])
@pytest.mark.parametrize("block_size", [0, 16, 128])
def test_head_dimensions_of_known_models(
    device: torch.device, head_dim: int, block_size: int
) -> None:
    x = ragged([70], [131], Heads(2, 1, head_dim), torch.bfloat16, device, block_size)
    assert_close_to_reference(run(x), answer(x), ATTENTION, torch_attention(x))


@pytest.mark.parametrize("window", [1, 37, 64, 128, 1000])
@pytest.mark.parametrize("block_size", [0, 16])
def test_a_window_hides_older_keys(device: torch.device, window: int, block_size: int) -> None:
    x = ragged([5, 200], [150, 331], Heads(2, 1, 64), torch.float16, device, block_size)
    want, by_torch = answer(x, window=window), torch_attention(x, window=window)
    assert_close_to_reference(run(x, window=window), want, ATTENTION, by_torch)


@pytest.mark.parametrize("window", [None, 50])
def test_sinks_join_the_denominator_only(device: torch.device, window: int | None) -> None:
    x = ragged([40], [90], Heads(4, 2, 64), torch.bfloat16, device, 16)
    sinks = torch.tensor([-1.0, 0.0, 3.0, 12.0], device=device)
    want = answer(x, window=window, sinks=sinks)
    assert_close_to_reference(run(x, window=window, sinks=sinks), want, ATTENTION)


@pytest.mark.parametrize(
    ("batch", "num_heads"),
    [(4, 8), *(pytest.param(*size, marks=needs_gpu) for size in ((8, 16), (24, 32), (64, 20)))],
)
@pytest.mark.parametrize("seq_len", [128, pytest.param(256, marks=needs_gpu)])
@pytest.mark.parametrize("head_dim", [32, 64])
def test_the_classic_table(
    device: torch.device, batch: int, num_heads: int, seq_len: int, head_dim: int
) -> None:
    heads = Heads(num_heads, num_heads, head_dim)
    x = ragged([seq_len] * batch, [seq_len] * batch, heads, torch.float16, device)
    assert_close_to_reference(run(x), answer(x), ATTENTION, torch_attention(x))


@needs_gpu
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("block_size", [0, 16, 256])
@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("may_be_gluon", [True, False])
def test_long_sequences(
    device: torch.device,
    head_dim: int,
    block_size: int,
    *,
    causal: bool,
    may_be_gluon: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if not may_be_gluon:
        monkeypatch.setattr(kernel, "runs_on_hopper", lambda *_: False)
    heads = Heads(8, 2, head_dim)
    x = ragged([2047, 513, 1], [2047, 4097, 3000], heads, torch.bfloat16, device, block_size)
    want, by_torch = answer(x, causal=causal), torch_attention(x, causal=causal)
    assert_close_to_reference(run(x, causal=causal), want, ATTENTION, by_torch)


# One query, a tile and one more, prefixes, a sequence without new tokens, and a tile without keys.
HOPPER_BATCH = ([1, 129, 65, 0, 300, 700], [258, 129, 200, 7, 1300, 700])


@needs_hopper
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("block_size", [0, 16, 32, 64, 128, 256])
@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("causal", [True, False])
def test_hopper_ragged_batches(
    device: torch.device,
    dtype: torch.dtype,
    block_size: int,
    head_dim: int,
    *,
    causal: bool,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    x = ragged(*HOPPER_BATCH, Heads(6, 2, head_dim), dtype, device, block_size)
    want, by_torch = answer(x, causal=causal), torch_attention(x, causal=causal)
    poison_new_outputs(monkeypatch)
    for _ in range(3):
        assert_close_to_reference(run_on_hopper(x, causal=causal), want, ATTENTION, by_torch)


@needs_hopper
@pytest.mark.parametrize("block_size", [0, 16])
def test_hopper_many_turns_a_program(device: torch.device, block_size: int) -> None:
    lens = [1000, 30, 2500, 129, 700, 64, 1, 513, 2000, 90, 300, 128]
    x = ragged(lens, [n + 77 for n in lens], Heads(32, 8, 128), torch.bfloat16, device, block_size)
    got, want = run_on_hopper(x), answer(x)
    assert_close_to_reference(got, want, ATTENTION, torch_attention(x))
    assert same_bits(got, run_on_hopper(x))


@needs_hopper
def test_hopper_gives_a_row_the_same_bits_in_any_batch(device: torch.device) -> None:
    x = ragged(*HOPPER_BATCH, Heads(4, 2, 128), torch.bfloat16, device, 16)
    together, bounds = run_on_hopper(x), x.cu_seqlens_q.tolist()
    for i in (0, 1, 2, 4, 5):
        # The last queries alone: their tiles begin elsewhere.
        first = bounds[i] + (bounds[i + 1] - bounds[i]) // 3
        alone = run_on_hopper(last_queries(x, i, bounds[i + 1] - first))
        assert same_bits(alone, together[first : bounds[i + 1]])


@needs_hopper
def test_hopper_sequences_without_keys_give_zeros(device: torch.device) -> None:
    x = ragged([3, 200], [0, 200], Heads(2, 1, 128), torch.float16, device)
    got = run_on_hopper(x)
    assert torch.equal(got[:3], torch.zeros_like(got[:3]))
    assert nmse(got[3:], answer(x)[3:]) < 1e-6


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_a_sequence_gives_the_same_bits_alone_and_in_a_batch(
    device: torch.device, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kernel, "runs_on_hopper", lambda *_: False)  # whose bits are others
    x = ragged([100, 3, 100], [100, 90, 170], Heads(2, 1, 64), dtype, device, 16)
    together = run(x)
    for i, rows in enumerate([slice(0, 100), slice(100, 103), slice(103, 203)]):
        alone = run(last_queries(x, i, rows.stop - rows.start))
        assert same_bits(alone, together[rows])


def test_inputs_may_be_views_and_stay_as_they_were(device: torch.device) -> None:
    x = ragged([70], [70], Heads(2, 1, 64), torch.bfloat16, device)
    packed = non_contiguous(torch.cat((x.q, x.k, x.v), dim=1).flatten(1))
    q, k, v = packed.unflatten(1, (4, 64)).split((2, 1, 1), dim=1)
    before = packed.clone()
    views = Ragged(q, x.keys, x.values, x.cu_seqlens_q, x.seq_lens, k, v, None)
    assert same_bits(run(views), run(x))
    assert same_bits(packed, before)


def test_large_scores_neither_overflow_nor_vanish(device: torch.device) -> None:
    x = ragged([66], [66], Heads(1, 1, 64), torch.float32, device)
    x.q.mul_(200.0)
    assert_close_to_reference(run(x), answer(x), {torch.float32: 1e-7})
    x.q.zero_()
    assert_close_to_reference(run(x), answer(x), ATTENTION)


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize(
    "how", [Launch(64, 32, 4, 2, 2), Launch(32, 64, 4, 2, 1), Launch(32, 64, 4, 2, 1, use_tma=True)]
)
def test_every_tile_gives_the_same_answer(
    device: torch.device, how: Launch, *, causal: bool
) -> None:
    x = ragged([33, 70], [33, 140], Heads(2, 2, 80), torch.float16, device)
    got = kernel.launch(
        how,
        x.q,
        x.k,
        x.v,
        cu_seqlens_q=x.cu_seqlens_q,
        seq_lens=x.seq_lens,
        max_q_len=70,
        block_table=None,
        causal=causal,
        scale=80**-0.5,
        window=None,
        sinks=None,
        out=torch.empty_like(x.q),
    )
    assert_close_to_reference(got, answer(x, causal=causal), ATTENTION)


def test_a_sequence_without_keys_gives_zeros(device: torch.device) -> None:
    x = ragged([3, 2], [0, 2], Heads(2, 1, 16), torch.float16, device)
    got = run(x, causal=False)
    assert torch.equal(got[:3], torch.zeros_like(got[:3]))
    assert nmse(got[3:], answer(x, causal=False)[3:]) < 1e-6


@pytest.mark.parametrize("block_size", [0, 16])
def test_reference_agrees_with_float64(block_size: int) -> None:
    cpu = torch.device("cpu")
    x = ragged([5, 70], [100, 131], Heads(6, 2, 16), torch.float32, cpu, block_size)
    sinks = torch.randn(6)
    arguments = {
        "cu_seqlens_q": x.cu_seqlens_q,
        "seq_lens": x.seq_lens,
        "block_table": x.block_table,
        "causal": True,
        "window": 40,
        "sinks": sinks,
    }
    got = torch.empty_like(x.q)
    reference.attention_prefill(x.q, x.k, x.v, scale=0.25, out=got, **arguments)
    assert nmse(got, answer(x, window=40, sinks=sinks)) < 1e-12
    assert torch.equal(got, attention_prefill(x.q, x.k, x.v, max_q_len=70, **arguments))


@pytest.mark.parametrize("block_size", [0, 16])
def test_rows_of_no_sequence_stay_as_they_were(device: torch.device, block_size: int) -> None:
    x = ragged([5, 3], [9, 3], Heads(2, 1, 16), torch.float16, device, block_size)
    q = torch.cat((torch.ones_like(x.q[:4]), x.q, torch.ones_like(x.q[:6])))
    out = torch.full(q.shape, 7.0, dtype=q.dtype, device=device)
    # The last sequence is padding: it has no queries and no keys.
    bounds = torch.cat((x.cu_seqlens_q, x.cu_seqlens_q[-1:])) + 4
    lengths = torch.cat((x.seq_lens, torch.zeros_like(x.seq_lens[:1])))
    table = x.block_table
    got = attention_prefill(
        q, x.k, x.v, cu_seqlens_q=bounds, seq_lens=lengths, max_q_len=18, out=out,
        block_table=None if table is None else torch.cat((table, table[:1])),
    )  # fmt: skip
    assert got is out
    assert (out[:4] == 7.0).all()
    assert (out[12:] == 7.0).all()
    assert same_bits(out[4:12], run(x) if device.type == "cuda" else attention_prefill(
        x.q, x.k, x.v, cu_seqlens_q=x.cu_seqlens_q, seq_lens=x.seq_lens, max_q_len=5,
        block_table=table,
    ))  # fmt: skip


def test_no_tokens_give_no_result(device: torch.device) -> None:
    x = ragged([0], [5], Heads(2, 1, 16), torch.float16, device)
    got = attention_prefill(
        x.q, x.k, x.v, cu_seqlens_q=x.cu_seqlens_q, seq_lens=x.seq_lens, max_q_len=0
    )
    assert got.shape == (0, 2, 16)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"q": (6, 3, 16)}, r"q has 3 heads, expected a multiple of k's 2"),
        ({"k": (9, 2, 8), "v": (9, 2, 8)}, r"k has head_dim 8, expected 16 as q"),
        ({"v": (9, 1, 16)}, r"v has shape \(9, 1, 16\), expected \(9, 2, 16\)"),
        ({"cu_seqlens_q": (3,)}, r"cu_seqlens_q has shape \(3,\), expected \(2,\)"),
        ({"sinks": (3,)}, r"sinks has shape \(3,\), expected \(4,\)"),
        ({"window": 0}, r"window is 0, expected at least 1"),
        ({"window": 4, "causal": False}, r"window is 4, expected None when causal is False"),
        ({"scale": -1.0}, r"scale is -1.0, expected a positive number"),
        ({"max_q_len": 0}, r"max_q_len is 0"),
        ({"out": (6, 4, 8)}, r"out has shape \(6, 4, 8\), expected \(6, 4, 16\)"),
    ],
)
def test_calls_against_the_contract_name_the_argument(
    device: torch.device, change: dict[str, object], message: str
) -> None:
    tensors: dict[str, Sequence[int]] = {"q": (6, 4, 16), "k": (9, 2, 16), "v": (9, 2, 16)}
    arguments: dict[str, object] = {
        name: torch.zeros(shape, device=device) for name, shape in tensors.items()
    }
    for name, size in (("cu_seqlens_q", 2), ("seq_lens", 1)):
        arguments[name] = torch.zeros(size, dtype=torch.int32, device=device)
    arguments["max_q_len"] = 6
    for name, value in change.items():
        if isinstance(value, tuple):
            dtype = torch.int32 if name == "cu_seqlens_q" else torch.float32
            value = torch.zeros(value, dtype=dtype, device=device)
        arguments[name] = value
    with pytest.raises(OperatorError, match=message):
        attention_prefill(**arguments)  # type: ignore[arg-type]


def test_dtypes_and_strides_must_match(device: torch.device) -> None:
    x = ragged([4], [4], Heads(2, 1, 16), torch.float16, device)
    lengths = {"cu_seqlens_q": x.cu_seqlens_q, "seq_lens": x.seq_lens, "max_q_len": 4}
    with pytest.raises(OperatorError, match=r"k has dtype torch.float32"):
        attention_prefill(x.q, x.k.float(), x.v, **lengths)
    with pytest.raises(OperatorError, match=r"q has strides \(32, 1, 2\)"):
        attention_prefill(x.q.reshape(4, 16, 2).transpose(1, 2), x.k, x.v, **lengths)
    with pytest.raises(OperatorError, match=r"seq_lens has dtype torch.float32"):
        attention_prefill(x.q, x.k, x.v, **(lengths | {"seq_lens": x.seq_lens.float()}))


def plain_problem(**changed: object) -> Problem:
    usual = {
        "num_seqs": 1,
        "max_q_len": 4096,
        "num_q_heads": 32,
        "num_kv_heads": 8,
        "head_dim": 128,
        "dtype": torch.bfloat16,
        "block_size": 16,
        "causal": True,
        "tma_ready": True,
        "heads_ready": True,
        "is_plain": True,
    }
    return Problem(**(usual | changed))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changed", "takes"),
    [
        ({}, True),
        ({"block_size": 0}, True),
        ({"block_size": 256}, True),
        ({"block_size": 8}, False),
        ({"head_dim": 64}, True),
        ({"head_dim": 64, "causal": False}, False),
        ({"head_dim": 96}, False),
        ({"causal": False}, True),
        ({"dtype": torch.float32}, False),
        ({"max_q_len": 65}, True),
        ({"max_q_len": 64}, False),
        ({"max_q_len": 512, "block_size": 0}, False),  # 128 tiles for 132 SMs
        ({"max_q_len": 513, "block_size": 0}, True),
        ({"is_plain": False}, False),
        ({"heads_ready": False}, False),
    ],
)
def test_what_runs_on_hopper(changed: dict[str, object], *, takes: bool) -> None:
    problem = plain_problem(**changed)
    assert runs_on_hopper(problem, H200) is takes
    for gpu in (A100, B200, RTX_5090, INTERPRETER):
        assert not runs_on_hopper(problem, gpu)


@pytest.mark.parametrize("head_dim", [16, 64, 80, 128, 256])
@pytest.mark.parametrize("block_size", [0, 16, 256])
@pytest.mark.parametrize("causal", [True, False])
def test_the_launch_fits_the_gpu(head_dim: int, block_size: int, *, causal: bool) -> None:
    problem = plain_problem(head_dim=head_dim, block_size=block_size, causal=causal)
    assert choose_launch(problem, H200).use_tma == (block_size != 16)
    assert not choose_launch(problem, A100).use_tma
    for gpu in (A100, H200, RTX_5090):
        how = choose_launch(problem, gpu)
        tiles = how.block_m + 2 * how.block_n * how.num_stages
        assert tiles * head_dim * 2 <= gpu.shared_bytes_per_block


@pytest.mark.parametrize(
    ("head_dim", "block_size", "causal", "tile"),
    [
        (64, 0, True, (64, 64, 4, 3)),
        (64, 0, False, (64, 128, 4, 2)),
        (128, 0, True, (64, 64, 4, 3)),
        (64, 256, True, (64, 64, 4, 3)),
        (128, 256, True, (128, 64, 4, 3)),
        (64, 16, True, (128, 64, 8, 3)),
        (128, 16, True, (128, 128, 8, 2)),
    ],
)
def test_the_tile_is_the_fastest_measured(
    head_dim: int, block_size: int, tile: tuple[int, int, int, int], *, causal: bool
) -> None:
    problem = plain_problem(head_dim=head_dim, block_size=block_size, causal=causal)
    how = choose_launch(problem, H200)
    assert (how.block_m, how.block_n, how.num_warps, how.num_stages) == tile


@pytest.mark.parametrize(("q_len", "heads"), [(16, 32), (4096, 16), (16384, 4), (131072, 1)])
def test_sections_keep_their_keys_in_the_cache(q_len: int, heads: int) -> None:
    problem = plain_problem(max_q_len=q_len, num_kv_heads=32, head_dim=64, block_size=0)
    assert choose_launch(problem, H200).heads_per_section == heads
