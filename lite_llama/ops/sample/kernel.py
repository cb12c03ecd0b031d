"""sample in Triton, without a sort.

top_k and top_p keep the tokens whose key reaches a threshold. Each threshold is found by a search
over the 32 bits of the (ordered) key, 4 bits a pass: a pass counts the tokens, or sums the
probability mass, at or above 16 thresholds, for every piece of a row; the next pass joins the
pieces in a fixed order, which settles 4 bits, and goes on from there. A last pass sums what is
kept of each piece, and one program a row inverts the cumulative distribution in the piece that
holds the draw. Nothing depends on other rows, and no result on the order programs run in.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lite_llama.kernel_lib.ordered_keys import index_of, indexed_key, ordered_key
from lite_llama.kernel_lib.rows import as_rows
from lite_llama.ops.sample.launch import BITS_PER_PASS, NUM_PASSES, choose_launch

_NUM_THRESHOLDS = 1 << BITS_PER_PASS


@triton.jit
def _row_best(best_ptr, row, splits, SPLIT_BLOCK: tl.constexpr):
    """The row's largest logit, with its index, from the pieces' largest."""
    split = tl.arange(0, SPLIT_BLOCK)
    keys = tl.load(best_ptr + row * splits + split, mask=split < splits, other=0)
    return tl.max(keys, axis=0)


@triton.jit
def _settled(
    lows_ptr,
    sums_ptr,
    wanted,
    row,
    num_rows,
    splits,
    done,
    BITS: tl.constexpr,
    FRACTION: tl.constexpr,
    SPLIT_BLOCK: tl.constexpr,
):
    """The threshold's bits that `done` > 0 passes have settled: the largest t whose sum reaches
    `wanted`. With FRACTION, that is a share of the first pass' first sum, which is the sum of all.
    """
    NUM: tl.constexpr = 1 << BITS
    split = tl.arange(0, SPLIT_BLOCK)[:, None]
    which = tl.arange(0, NUM)[None, :]
    at = (row * splits + split) * NUM + which
    mask = split < splits
    previous_at = sums_ptr + (done - 1) * num_rows.to(tl.int64) * splits * NUM + at
    reached = tl.sum(tl.load(previous_at, mask=mask, other=0.0), axis=0)
    if FRACTION:
        all_at = sums_ptr + (row * splits + tl.arange(0, SPLIT_BLOCK)) * NUM
        wanted *= tl.sum(tl.load(all_at, mask=tl.arange(0, SPLIT_BLOCK) < splits, other=0.0))
    # Sums fall with the threshold, so those that reach are the first ones; the lowest always does.
    digit = tl.maximum(tl.sum((reached >= wanted).to(tl.int32)) - 1, 0)
    low = tl.load(lows_ptr + (done - 1) * num_rows + row)
    return low + (digit.to(tl.uint32) << (32 - BITS * done))


@triton.jit
def _top_k_floor(
    lows_ptr,
    sums_ptr,
    top_k,
    row,
    num_rows,
    vocab,
    splits,
    NUM_PASSES: tl.constexpr,
    BITS: tl.constexpr,
    SPLIT_BLOCK: tl.constexpr,
):
    """The top_k-th largest key after all passes; 0 if top_k keeps all."""
    floor = tl.full([], 0, tl.uint32)
    if top_k > 0:
        floor = _settled(
            lows_ptr,
            sums_ptr,
            tl.minimum(top_k, vocab).to(tl.float32),
            row,
            num_rows,
            splits,
            NUM_PASSES,
            BITS=BITS,
            FRACTION=False,
            SPLIT_BLOCK=SPLIT_BLOCK,
        )
    return floor


@triton.jit
def _best_of_piece(logits_ptr, best_ptr, row_stride, vocab, splits, BLOCK: tl.constexpr):
    row = (tl.program_id(0) // splits).to(tl.int64)
    index = (tl.program_id(0) % splits) * BLOCK + tl.arange(0, BLOCK)
    mask = index < vocab
    key = ordered_key(tl.load(logits_ptr + row * row_stride + index, mask=mask, other=0.0))
    tl.store(best_ptr + tl.program_id(0), tl.max(tl.where(mask, indexed_key(key, index), 0)))


# Neither the pass nor the size of the batch must cost a compilation.
@triton.jit(do_not_specialize=["pass_index", "num_rows"])
def _search_pass(
    logits_ptr,
    best_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    k_lows_ptr,
    k_sums_ptr,
    p_lows_ptr,
    p_sums_ptr,
    row_stride,
    num_rows,
    vocab,
    splits,
    pass_index,
    FIRST: tl.constexpr,
    BY_MASS: tl.constexpr,
    USES_TOP_K: tl.constexpr,
    NUM_PASSES: tl.constexpr,
    BITS: tl.constexpr,
    SPLIT_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = (tl.program_id(0) // splits).to(tl.int64)
    temperature = tl.load(temperature_ptr + row)
    top_k = tl.load(top_k_ptr + row)
    top_p = tl.load(top_p_ptr + row)
    if temperature == 0.0:
        return
    if BY_MASS:
        if top_p >= 1.0:
            return
    elif top_k <= 0:
        return
    piece = tl.program_id(0) % splits
    index = piece * BLOCK + tl.arange(0, BLOCK)
    mask = index < vocab
    logits = tl.load(logits_ptr + row * row_stride + index, mask=mask, other=0.0).to(tl.float32)
    scaled = tl.div_rn(logits, temperature)
    key = tl.where(mask, ordered_key(scaled), 0).to(tl.uint32)
    if BY_MASS:
        best = index_of(_row_best(best_ptr, row, splits, SPLIT_BLOCK))
        largest = tl.div_rn(
            tl.load(logits_ptr + row * row_stride + best).to(tl.float32), temperature
        )
        weight = tl.where(mask, tl.exp(scaled - largest), 0.0)
        if USES_TOP_K:
            floor = _top_k_floor(
                k_lows_ptr,
                k_sums_ptr,
                top_k,
                row,
                num_rows,
                vocab,
                splits,
                NUM_PASSES,
                BITS,
                SPLIT_BLOCK,
            )
            weight = tl.where(key >= floor, weight, 0.0)
        lows_ptr = p_lows_ptr
        sums_ptr = p_sums_ptr
        wanted = top_p
    else:
        weight = mask.to(tl.float32)
        lows_ptr = k_lows_ptr
        sums_ptr = k_sums_ptr
        wanted = tl.minimum(top_k, vocab).to(tl.float32)
    threshold = tl.full([], 0, tl.uint32)
    if not FIRST:
        threshold = _settled(
            lows_ptr,
            sums_ptr,
            wanted,
            row,
            num_rows,
            splits,
            pass_index,
            BITS=BITS,
            FRACTION=BY_MASS,
            SPLIT_BLOCK=SPLIT_BLOCK,
        )
    if piece == 0:
        tl.store(lows_ptr + pass_index * num_rows + row, threshold)
    NUM: tl.constexpr = 1 << BITS
    sums_ptr += ((pass_index * num_rows + row) * splits + piece) * NUM
    step = tl.full([], 1, tl.uint32) << (32 - BITS - BITS * pass_index)
    for i in range(NUM):
        tl.store(sums_ptr + i, tl.sum(tl.where(key >= threshold, weight, 0.0), axis=0))
        threshold += step


@triton.jit(do_not_specialize=["num_rows"])
def _kept_mass(
    logits_ptr,
    best_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    k_lows_ptr,
    k_sums_ptr,
    p_lows_ptr,
    p_sums_ptr,
    thresholds_ptr,
    masses_ptr,
    row_stride,
    num_rows,
    vocab,
    splits,
    USES_TOP_K: tl.constexpr,
    USES_TOP_P: tl.constexpr,
    NUM_PASSES: tl.constexpr,
    BITS: tl.constexpr,
    SPLIT_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = (tl.program_id(0) // splits).to(tl.int64)
    piece = tl.program_id(0) % splits
    temperature = tl.load(temperature_ptr + row)
    if temperature == 0.0:
        return
    index = piece * BLOCK + tl.arange(0, BLOCK)
    mask = index < vocab
    logits = tl.load(logits_ptr + row * row_stride + index, mask=mask, other=0.0).to(tl.float32)
    best = index_of(_row_best(best_ptr, row, splits, SPLIT_BLOCK))
    largest = tl.div_rn(tl.load(logits_ptr + row * row_stride + best).to(tl.float32), temperature)
    threshold = tl.full([], 0, tl.uint32)
    if USES_TOP_K:
        threshold = _top_k_floor(
            k_lows_ptr,
            k_sums_ptr,
            tl.load(top_k_ptr + row),
            row,
            num_rows,
            vocab,
            splits,
            NUM_PASSES,
            BITS,
            SPLIT_BLOCK,
        )
    if USES_TOP_P:
        top_p = tl.load(top_p_ptr + row)
        if top_p < 1.0:
            p_low = _settled(
                p_lows_ptr,
                p_sums_ptr,
                top_p,
                row,
                num_rows,
                splits,
                NUM_PASSES,
                BITS=BITS,
                FRACTION=True,
                SPLIT_BLOCK=SPLIT_BLOCK,
            )
            threshold = tl.maximum(threshold, p_low)
    # However small top_p is, the most likely tokens stay.
    threshold = tl.minimum(threshold, ordered_key(largest))
    weight = _kept_weight(logits, temperature, largest, threshold, tl.load(min_p_ptr + row), mask)
    tl.store(masses_ptr + tl.program_id(0), tl.sum(weight, axis=0))
    if piece == 0:
        tl.store(thresholds_ptr + row, threshold)


@triton.jit
def _kept_weight(logits, temperature, largest, threshold, min_p, mask):
    """exp(scaled − largest) of the tokens that top_k, top_p and min_p keep, 0 elsewhere."""
    scaled = tl.div_rn(logits, temperature)
    weight = tl.exp(scaled - largest)
    kept = mask & (ordered_key(scaled) >= threshold) & (weight >= min_p)
    return tl.where(kept, weight, 0.0)


@triton.jit
def _draw(
    logits_ptr,
    best_ptr,
    temperature_ptr,
    min_p_ptr,
    seeds_ptr,
    positions_ptr,
    thresholds_ptr,
    masses_ptr,
    out_ptr,
    row_stride,
    vocab,
    splits,
    SPLIT_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    best = index_of(_row_best(best_ptr, row, splits, SPLIT_BLOCK))
    temperature = tl.load(temperature_ptr + row)
    if temperature == 0.0:
        tl.store(out_ptr + row, best)
        return
    position = tl.load(positions_ptr + row)
    low, high = position.to(tl.uint32), (position >> 32).to(tl.uint32)
    zero = tl.full([], 0, tl.uint32)
    word, _, _, _ = tl.philox(tl.load(seeds_ptr + row), low, high, zero, zero)
    uniform = (word >> 8).to(tl.float32) * 5.9604644775390625e-08  # 2⁻²⁴
    # Which piece holds the draw: the first whose cumulative mass exceeds the target.
    split = tl.arange(0, SPLIT_BLOCK)
    masses = tl.load(masses_ptr + row * splits + split, mask=split < splits, other=0.0)
    up_to = tl.cumsum(masses, axis=0)
    target = uniform * tl.sum(masses, axis=0)
    last = tl.max(tl.where(masses > 0, split, 0), axis=0)
    piece = tl.minimum(tl.min(tl.where(up_to > target, split, SPLIT_BLOCK), axis=0), last)
    before = tl.sum(tl.where(split < piece, masses, 0.0), axis=0)
    # Within the piece the same, token by token; rounding may leave the target unreached at the end.
    index = piece * BLOCK + tl.arange(0, BLOCK)
    mask = index < vocab
    logits = tl.load(logits_ptr + row * row_stride + index, mask=mask, other=0.0).to(tl.float32)
    largest = tl.div_rn(tl.load(logits_ptr + row * row_stride + best).to(tl.float32), temperature)
    threshold = tl.load(thresholds_ptr + row)
    weight = _kept_weight(logits, temperature, largest, threshold, tl.load(min_p_ptr + row), mask)
    hit = (before + tl.cumsum(weight, axis=0) > target) & (weight > 0)
    first_hit = tl.min(tl.where(hit, index, 0x7FFFFFFF), axis=0)
    last_kept = tl.max(tl.where(weight > 0, index, 0), axis=0)
    tl.store(out_ptr + row, tl.minimum(first_hit, last_kept))


@triton.jit
def _penalise(
    logits_ptr,
    prompt_mask_ptr,
    output_counts_ptr,
    repetition_ptr,
    presence_ptr,
    frequency_ptr,
    logits_row_stride,
    mask_row_stride,
    counts_row_stride,
    vocab,
    splits,
    BLOCK: tl.constexpr,
):
    row = (tl.program_id(0) // splits).to(tl.int64)
    repetition = tl.load(repetition_ptr + row)
    presence = tl.load(presence_ptr + row)
    frequency = tl.load(frequency_ptr + row)
    if (repetition == 1.0) & (presence == 0.0) & (frequency == 0.0):
        return
    index = (tl.program_id(0) % splits) * BLOCK + tl.arange(0, BLOCK)
    in_row = index < vocab
    count = tl.load(output_counts_ptr + row * counts_row_stride + index, mask=in_row, other=0)
    prompt = tl.load(prompt_mask_ptr + row * mask_row_stride + index, mask=in_row, other=0)
    seen = in_row & ((count > 0) | (prompt != 0))
    logits_ptr += row * logits_row_stride
    logits = tl.load(logits_ptr + index, mask=seen, other=0.0)
    logits = tl.where(logits > 0, tl.div_rn(logits, repetition), logits * repetition)
    logits -= frequency * count.to(tl.float32)
    logits -= presence * (count > 0).to(tl.float32)
    tl.store(logits_ptr + index, logits, mask=seen)


@triton.jit
def _log_sum_of_piece(logits_ptr, partial_ptr, row_stride, vocab, splits, BLOCK: tl.constexpr):
    row = (tl.program_id(0) // splits).to(tl.int64)
    index = (tl.program_id(0) % splits) * BLOCK + tl.arange(0, BLOCK)
    logits_ptr += row * row_stride
    logits = tl.load(logits_ptr + index, mask=index < vocab, other=float("-inf")).to(tl.float32)
    largest = tl.max(logits, axis=0)
    # A piece of −inf alone: −inf − 0 stays −inf and adds nothing.
    total = tl.sum(tl.exp(logits - tl.where(largest == float("-inf"), 0.0, largest)), axis=0)
    tl.store(partial_ptr + tl.program_id(0) * 2, largest)
    tl.store(partial_ptr + tl.program_id(0) * 2 + 1, total)


@triton.jit
def _gather_logprobs(
    logits_ptr,
    tokens_ptr,
    partial_ptr,
    out_ptr,
    row_stride,
    num_tokens,
    splits,
    SPLIT_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    split = tl.arange(0, SPLIT_BLOCK)
    at = partial_ptr + (row * splits + split) * 2
    largest = tl.load(at, mask=split < splits, other=float("-inf"))
    totals = tl.load(at + 1, mask=split < splits, other=0.0)
    row_largest = tl.max(largest, axis=0)
    log_total = tl.log(tl.sum(totals * tl.exp(largest - row_largest), axis=0)) + row_largest
    column = tl.arange(0, BLOCK)
    mask = column < num_tokens
    token = tl.load(tokens_ptr + row * num_tokens + column, mask=mask, other=0)
    logit = tl.load(logits_ptr + row * row_stride + token, mask=mask, other=0.0).to(tl.float32)
    tl.store(out_ptr + row * num_tokens + column, logit - log_total, mask=mask)


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seeds: Tensor,
    positions: Tensor,
    *,
    any_top_k: bool,
    any_top_p: bool,
) -> Tensor:
    """One token id a row, int64 [num_rows]; at least one row."""
    logits = as_rows(logits)
    num_rows, vocab = logits.shape
    launch = choose_launch(vocab)
    splits = launch.splits
    grid = (num_rows * splits,)
    device = logits.device
    best = torch.empty(num_rows * splits, dtype=torch.int64, device=device)
    out = torch.empty(num_rows, dtype=torch.int64, device=device)
    thresholds = torch.empty(num_rows, dtype=torch.uint32, device=device)
    masses = torch.empty(num_rows * splits, device=device)
    # For each search: the bits settled before a pass, and a pass' sums. [k, p]
    lows = torch.empty(2, NUM_PASSES, num_rows, dtype=torch.uint32, device=device)
    sums = torch.empty(2, NUM_PASSES, num_rows, splits, _NUM_THRESHOLDS, device=device)
    searches = (lows[0], sums[0], lows[1], sums[1])
    sizes = (logits.stride(0), num_rows, vocab, splits)
    meta = {
        "NUM_PASSES": NUM_PASSES,
        "BITS": BITS_PER_PASS,
        "SPLIT_BLOCK": launch.split_block,
        "BLOCK": launch.block,
        "num_warps": launch.num_warps,
    }
    _best_of_piece[grid](
        logits,
        best,
        logits.stride(0),
        vocab,
        splits,
        BLOCK=launch.block,
        num_warps=launch.num_warps,
    )
    for by_mass, wanted in ((False, any_top_k), (True, any_top_p)):
        for i in range(NUM_PASSES if wanted else 0):
            _search_pass[grid](
                logits,
                best,
                temperature,
                top_k,
                top_p,
                *searches,
                *sizes,
                i,
                FIRST=i == 0,
                BY_MASS=by_mass,
                USES_TOP_K=any_top_k,
                **meta,
            )
    _kept_mass[grid](
        logits,
        best,
        temperature,
        top_k,
        top_p,
        min_p,
        *searches,
        thresholds,
        masses,
        *sizes,
        USES_TOP_K=any_top_k,
        USES_TOP_P=any_top_p,
        **meta,
    )
    _draw[(num_rows,)](
        logits,
        best,
        temperature,
        min_p,
        seeds,
        positions,
        thresholds,
        masses,
        out,
        logits.stride(0),
        vocab,
        splits,
        SPLIT_BLOCK=launch.split_block,
        BLOCK=launch.block,
        num_warps=launch.num_warps,
    )
    return out


def apply_penalties(
    logits: Tensor,
    prompt_mask: Tensor,
    output_counts: Tensor,
    repetition: Tensor,
    presence: Tensor,
    frequency: Tensor,
) -> None:
    """Penalise seen tokens in place; at least one row."""
    num_rows, vocab = logits.shape
    launch = choose_launch(vocab)
    _penalise[(num_rows * launch.splits,)](
        logits,
        prompt_mask.view(torch.uint8),
        output_counts,
        repetition,
        presence,
        frequency,
        logits.stride(0),
        prompt_mask.stride(0),
        output_counts.stride(0),
        vocab,
        launch.splits,
        BLOCK=launch.block,
        num_warps=launch.num_warps,
    )


def token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """log softmax(logits) at `tokens` [num_rows, m], float32; at least one row and token."""
    logits, tokens = as_rows(logits), tokens.contiguous()
    num_rows, vocab = logits.shape
    launch = choose_launch(vocab)
    num_tokens = tokens.shape[1]
    partial = torch.empty(num_rows, launch.splits, 2, device=logits.device)
    out = torch.empty(num_rows, num_tokens, device=logits.device)
    _log_sum_of_piece[(num_rows * launch.splits,)](
        logits,
        partial,
        logits.stride(0),
        vocab,
        launch.splits,
        BLOCK=launch.block,
        num_warps=launch.num_warps,
    )
    _gather_logprobs[(num_rows,)](
        logits,
        tokens,
        partial,
        out,
        logits.stride(0),
        num_tokens,
        launch.splits,
        SPLIT_BLOCK=launch.split_block,
        BLOCK=triton.next_power_of_2(num_tokens),
        num_warps=4,
    )
    return out
