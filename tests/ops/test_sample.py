import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from lite_llama.errors import OperatorError
from lite_llama.ops import SamplingRows, apply_masks, apply_penalties, sample, token_logprobs
from lite_llama.ops.sample import kernel, reference
from lite_llama.ops.sample.launch import MAX_VOCAB, SampleLaunch, choose_launch
from tests.ops.compare import (
    assert_close_to_reference,
    non_contiguous,
    poison_new_outputs,
    random,
    same_bits,
)
from tests.ops.tolerances import ROWWISE


def _rows(num_rows: int, device: torch.device, **settings: float) -> SamplingRows:
    """The same settings for every row (keeping everything, unless given), seeds 0, 1, ..."""
    values = {"temperature": 1.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0} | settings
    return SamplingRows(
        temperature=torch.full((num_rows,), values["temperature"], device=device),
        top_k=torch.full((num_rows,), values["top_k"], dtype=torch.int32, device=device),
        top_p=torch.full((num_rows,), values["top_p"], device=device),
        min_p=torch.full((num_rows,), values["min_p"], device=device),
        seeds=torch.arange(num_rows, device=device) * 10**12 + 1,
        positions=torch.arange(num_rows, device=device) + 2**33,
    )


def _tensors(rows: SamplingRows) -> dict[str, Tensor]:
    named = {field.name: getattr(rows, field.name) for field in dataclasses.fields(rows)}
    return {name: value for name, value in named.items() if isinstance(value, Tensor)}


def _kernel(logits: Tensor, rows: SamplingRows) -> Tensor:
    flags = {"any_top_k": rows.any_top_k, "any_top_p": rows.any_top_p}
    return kernel.sample(logits, **_tensors(rows), **flags)


def _reference(logits: Tensor, rows: SamplingRows) -> Tensor:
    return reference.sample(logits.float(), **_tensors(rows))


def _assert_same_draws(logits: Tensor, rows: SamplingRows) -> None:
    got, want = _kernel(logits, rows), _reference(logits, rows)
    assert torch.equal(got, want), f"rows {(got != want).nonzero()[:, 0].tolist()} differ"


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"temperature": 0.0},
        {"temperature": 0.7},
        {"top_k": 1},
        {"top_k": 40},
        {"top_p": 0.9},
        {"top_p": 0.2, "temperature": 1.5},
        {"min_p": 0.1},
        {"top_k": 50, "top_p": 0.8, "min_p": 0.02, "temperature": 0.9},
        {"top_k": 10**6, "top_p": 0.9999},
    ],
)
def test_kernel_draws_the_reference_tokens(
    device: torch.device, settings: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    logits = random(2, 3000, dtype=torch.float32, device=device, scale=3.0)
    rows = _rows(2, device, **settings)
    want = _reference(logits, rows)
    poison_new_outputs(monkeypatch)
    assert torch.equal(_kernel(logits, rows), want)


def test_rows_with_different_settings_share_a_batch_across_pieces(device: torch.device) -> None:
    logits = random(4, 5000, dtype=torch.float32, device=device, scale=2.0)
    rows = dataclasses.replace(
        _rows(4, device),
        temperature=torch.tensor([0.0, 0.5, 1.0, 2.0], device=device),
        top_k=torch.tensor([5, 0, 300, 7], dtype=torch.int32, device=device),
        top_p=torch.tensor([0.5, 0.9, 1.0, 0.7], device=device),
        min_p=torch.tensor([0.5, 0.0, 0.01, 0.0], device=device),
    )
    _assert_same_draws(logits, rows)
    # A row draws the same token alone.
    alone = SamplingRows(**{name: x[1:2] for name, x in _tensors(rows).items()})
    assert torch.equal(_kernel(logits[1:2], alone), _reference(logits, rows)[1:2])


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: the interpreter takes minutes")
def test_a_full_vocabulary_draws_the_reference_tokens() -> None:
    device = torch.device("cuda")
    logits = random(64, 128256, dtype=torch.float32, device=device, scale=2.0)
    for settings in ({}, {"top_p": 0.9}, {"top_k": 50}, {"top_k": 500, "top_p": 0.95}):
        got, want = (draw(logits, _rows(64, device, **settings)) for draw in (_kernel, _reference))
        # float32 sums in another order may move a draw across a token's edge.
        assert (got != want).sum() <= 1, settings


def test_ties_at_the_threshold_are_all_kept(device: torch.device) -> None:
    # bf16 logits repeat values: the k-th largest has equals.
    logits = random(3, 2000, dtype=torch.bfloat16, device=device, scale=2.0)
    _assert_same_draws(logits, _rows(3, device, top_k=20))
    _assert_same_draws(logits, _rows(3, device, top_p=0.5))
    flat = torch.zeros(3, 2000, device=device)
    _assert_same_draws(flat, _rows(3, device, top_k=3, top_p=0.1))


def test_cuts_that_do_not_fit_the_best_groups_are_searched_over_the_row(
    device: torch.device,
) -> None:
    # 40000 tokens: 2500 groups of 16, of which 1024 are looked at closely.
    logits = random(4, 40000, dtype=torch.float32, device=device, scale=0.1)
    logits[3] = 0.0
    rows = dataclasses.replace(
        _rows(4, device),
        top_k=torch.tensor([0, 30000, 20000, 9], dtype=torch.int32, device=device),
        top_p=torch.tensor([0.9, 1.0, 0.7, 1.0], device=device),
    )
    _assert_same_draws(logits, rows)


def test_every_seed_and_position_draws_its_own_uniform(device: torch.device) -> None:
    # 1024 equal logits turn u into the index: u · 1024, rounded down.
    rows = dataclasses.replace(_rows(32, device), any_top_k=False, any_top_p=False)
    got = _kernel(torch.zeros(32, 1024, device=device), rows)
    uniform = reference.philox_uniform(rows.seeds, rows.positions)
    assert torch.equal(got, (uniform * 1024).long())


def test_masked_tokens_are_never_drawn(device: torch.device) -> None:
    logits = torch.full((4, 5000), float("-inf"), device=device)
    logits[:, [3, 4500]] = 0.0
    rows = _rows(4, device, top_p=0.99, top_k=100)
    assert set(_kernel(logits, rows).tolist()) == {3, 4500}


def test_extreme_temperatures_and_cuts_pick_the_largest(device: torch.device) -> None:
    logits = random(1, 2000, dtype=torch.float32, device=device)
    largest = logits.argmax(-1)
    tiny: dict[str, float] = {"temperature": 1e-38}
    for settings in (
        {"temperature": 1e-4},
        tiny,
        tiny | {"top_p": 0.9},
        tiny | {"top_k": 50, "top_p": 0.9, "min_p": 0.1},
        {"top_p": 1e-6},
        {"min_p": 1.0},
        {"top_k": 1},
    ):
        assert torch.equal(_kernel(logits, _rows(1, device, **settings)), largest)


def test_many_groups_that_tie_at_a_small_top_k_are_all_kept(device: torch.device) -> None:
    # 400 groups hold the same maximum: more than a small top_k looks at first.
    logits = random(2, 16000, dtype=torch.float32, device=device)
    logits[:, 5:6400:16] = 9.0
    _assert_same_draws(logits, _rows(2, device, top_k=20, top_p=0.9))


def test_the_host_may_leave_out_searches_no_row_needs(device: torch.device) -> None:
    logits = random(3, 3000, dtype=torch.float32, device=device)
    plain = dataclasses.replace(_rows(3, device, min_p=0.05), any_top_k=False, any_top_p=False)
    _assert_same_draws(logits, plain)
    only_p = dataclasses.replace(_rows(3, device, top_p=0.6), any_top_k=False)
    _assert_same_draws(logits, only_p)
    only_k = dataclasses.replace(_rows(3, device, top_k=9), any_top_p=False)
    _assert_same_draws(logits, only_k)


def test_a_cut_whose_search_was_left_out_is_not_made(device: torch.device) -> None:
    # Ties by the thousand: the nucleus would be searched over the whole row.
    logits = torch.zeros(2, 20_000, device=device)
    row = _rows(2, device, top_p=0.5)
    kept = dataclasses.replace(row, any_top_p=False)
    assert torch.equal(_kernel(logits, kept), _reference(logits, _rows(2, device)))


def test_logits_may_be_strided_and_stay_unchanged(device: torch.device) -> None:
    logits = random(3, 2000, dtype=torch.float32, device=device)
    strided = non_contiguous(logits)
    rows = _rows(3, device, top_k=30, top_p=0.9)
    assert torch.equal(_kernel(strided, rows), _kernel(logits, rows))
    assert same_bits(strided, logits)


def test_penalties_follow_the_definition(device: torch.device) -> None:
    logits = random(3, 5000, dtype=torch.float32, device=device)
    prompt = torch.rand(3, 5000).lt(0.3).to(device)
    counts = torch.randint(0, 4, (3, 5000), dtype=torch.int32).to(device)
    strengths = [
        torch.tensor(values, device=device)
        for values in ((1.3, 1.0, 0.8), (0.5, 0.0, -0.2), (0.1, 0.0, 0.7))
    ]
    want = logits.double()
    reference.apply_penalties(want, prompt, counts, *(x.double() for x in strengths))
    got = logits.clone()
    kernel.apply_penalties(got, prompt, counts, *strengths)
    assert_close_to_reference(got, want, ROWWISE)
    unseen = ~prompt & (counts == 0)
    assert same_bits(got[unseen], logits[unseen])
    assert same_bits(got[1], logits[1]), "neutral penalties must not touch the row"


@pytest.mark.parametrize("vocab", [1, 31, 5000, 9001])
def test_masks_ban_what_their_bits_leave_out(device: torch.device, vocab: int) -> None:
    num_words = -(-vocab // 32)
    logits = random(4, vocab, dtype=torch.float32, device=device)
    words = torch.randint(-(2**31), 2**31, (4, num_words + 3), dtype=torch.int32)[:, :num_words]
    words[1], words[2] = 0, -1
    allowed = torch.tensor(
        [[(int(row[i // 32]) >> i % 32) & 1 for i in range(vocab)] for row in words]
    ).bool()
    want = torch.where(allowed, logits.cpu(), float("-inf"))
    for apply in (kernel.apply_masks, reference.apply_masks, apply_masks):
        padded = torch.full((4, vocab + 5), 7.0, device=device)
        padded[:, :vocab] = logits
        apply(padded[:, :vocab], words.to(device))
        assert torch.equal(padded[:, :vocab].cpu(), want)
        assert (padded[:, vocab:] == 7.0).all(), "a row's neighbour was touched"


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_logprobs_match_log_softmax(device: torch.device, dtype: torch.dtype) -> None:
    logits = random(3, 9000, dtype=dtype, device=device, scale=5.0)
    logits[0, 5000:] = float("-inf")
    tokens = torch.tensor([[0, 4999, 7], [8999, 1, 1], [5, 6, 7]], device=device)
    want = torch.log_softmax(logits.double(), dim=-1).gather(1, tokens)
    assert_close_to_reference(kernel.token_logprobs(logits, tokens), want, ROWWISE)


def test_splits_depend_on_the_vocabulary_alone() -> None:
    assert choose_launch(128256) == SampleLaunch(
        splits=32,
        split_block=32,
        block=4096,
        num_warps=8,
        group=16,
        groups=8016,
        groups_block=8192,
        best_groups=1024,
        few_groups=256,
    )
    largest = choose_launch(MAX_VOCAB)
    assert (largest.group, largest.groups, largest.best_groups) == (512, 8192, 32)
    assert largest.few_groups == 32
    assert choose_launch(3) == SampleLaunch(1, 1, 32, 1, 16, 1, 1, 1, 1)


def test_no_rows_give_no_tokens(device: torch.device) -> None:
    logits = torch.empty(0, 8, device=device)
    assert sample(logits, _rows(0, device)).shape == (0,)
    tokens = torch.empty(0, 2, dtype=torch.int64, device=device)
    assert token_logprobs(logits, tokens).shape == (0, 2)


def test_calls_against_the_contract_name_the_argument(device: torch.device) -> None:
    logits, rows = torch.zeros(2, 8, device=device), _rows(2, device)
    with pytest.raises(OperatorError, match=r"temperature has shape \(2,\), expected \(1,\)"):
        sample(logits[:1], rows)
    with pytest.raises(OperatorError, match=r"top_k has dtype torch.int64, expected torch.int32"):
        sample(logits, dataclasses.replace(rows, top_k=rows.top_k.long()))
    with pytest.raises(OperatorError, match=r"logits has shape \(2, 0\)"):
        sample(logits[:, :0], rows)
    mask, counts = torch.zeros(2, 8, dtype=torch.bool, device=device), torch.zeros(2, 8).int()
    ones = torch.ones(2, device=device)
    with pytest.raises(OperatorError, match="presence has shape"):
        apply_penalties(logits, mask, counts.to(device), ones, ones[:1], ones)
    with pytest.raises(OperatorError, match=r"words has shape \(2, 2\), expected \(2, 1\)"):
        apply_masks(logits, torch.zeros(2, 2, dtype=torch.int32, device=device))
    with pytest.raises(OperatorError, match=r"words has dtype torch.int64"):
        apply_masks(logits, torch.zeros(2, 1, dtype=torch.int64, device=device))
