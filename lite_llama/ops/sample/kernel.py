"""sample in Triton, without a sort.

The first kernel reads the logits once and leaves, for every piece of a row, its largest logit and
its share of the probability mass, and for every group of 16 neighbours their maximum. Rows that
top_k or top_p cut are then drawn by one program each: the most likely tokens all lie in the groups
with the largest maxima, so it reads only those again, and searches the bits of the (ordered) keys
for the thresholds of top_k and top_p. What does not fit there (top_k beyond the groups, a nucleus
of many thousand tokens, ties by the thousand) is searched over the whole row, by kernels that
otherwise leave at once. Rows without a cut need no threshold: their kept mass is summed piece by
piece, and one program a row inverts the cumulative distribution in the piece that holds the draw.
Nothing depends on other rows, and no result on the order programs run in.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor

from lite_llama.kernel_lib.ordered_keys import (
    best_indexed_key,
    float_of_key,
    index_of,
    largest_reaching,
    ordered_key,
)
from lite_llama.kernel_lib.rows import as_rows
from lite_llama.ops.sample.launch import choose_launch

_SCAN_BLOCK = 8192


@triton.jit
def _row_best(best_ptr, row, splits, SPLIT_BLOCK: tl.constexpr):
    """The index of the row's largest logit, from the pieces' largest."""
    split = tl.arange(0, SPLIT_BLOCK)
    keys = tl.load(best_ptr + row * splits + split, mask=split < splits, other=0)
    return index_of(tl.max(keys, axis=0))


@triton.jit
def _scaled_at(logits_ptr, index, temperature):
    """A row's logit at `index` over the temperature, float32."""
    return tl.div_rn(tl.load(logits_ptr + index).to(tl.float32), temperature)


@triton.jit
def _uniform(seeds_ptr, positions_ptr, row):
    """u in [0, 1) of the row's seed and position."""
    position = tl.load(positions_ptr + row)
    low, high = position.to(tl.uint32), (position >> 32).to(tl.uint32)
    zero = tl.full([], 0, tl.uint32)
    word, _, _, _ = tl.philox(tl.load(seeds_ptr + row), low, high, zero, zero)
    return (word >> 8).to(tl.float32) * 5.9604644775390625e-08  # 2⁻²⁴


@triton.jit
def _kept_weight(logits, temperature, largest, threshold, min_p, mask):
    """exp(scaled − largest) of the tokens that top_k, top_p and min_p keep, 0 elsewhere."""
    scaled = tl.div_rn(logits, temperature)
    weight = tl.exp(scaled - largest)
    kept = mask & (ordered_key(scaled) >= threshold) & (weight >= min_p)
    return tl.where(kept, weight, 0.0)


@triton.jit
def _part_of_draw(masses, uniform, NUM: tl.constexpr):
    """Which of NUM parts holds the draw (the first whose cumulative mass exceeds the target), the
    mass before it, and the target."""
    part = tl.arange(0, NUM)
    target = uniform * tl.sum(masses, axis=0)
    up_to = tl.cumsum(masses, axis=0)
    last = tl.max(tl.where(masses > 0, part, 0), axis=0)
    chosen = tl.minimum(tl.min(tl.where(up_to > target, part, NUM), axis=0), last)
    return chosen, tl.sum(tl.where(part < chosen, masses, 0.0), axis=0), target


@triton.jit
def _draw_within(
    logits_ptr,
    start,
    vocab,
    temperature,
    largest,
    threshold,
    min_p,
    before,
    target,
    BLOCK: tl.constexpr,
):
    """The token of [start, start + BLOCK) at which the cumulative mass exceeds the target."""
    index = start + tl.arange(0, BLOCK)
    mask = index < vocab
    logits = tl.load(logits_ptr + index, mask=mask, other=0.0).to(tl.float32)
    weight = _kept_weight(logits, temperature, largest, threshold, min_p, mask)
    hit = (before + tl.cumsum(weight, axis=0) > target) & (weight > 0)
    first_hit = tl.min(tl.where(hit, index, 0x7FFFFFFF), axis=0)
    # Rounding may leave the target unreached at the end.
    return tl.minimum(first_hit, tl.max(tl.where(weight > 0, index, 0), axis=0))


@triton.jit
def _summarise_piece(
    logits_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    best_ptr,
    piece_masses_ptr,
    maxima_ptr,
    row_stride,
    vocab,
    splits,
    num_groups,
    SEARCHED: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = (tl.program_id(0) // splits).to(tl.int64)
    piece = tl.program_id(0) % splits
    logits_ptr += row * row_stride
    if SEARCHED:
        group = piece * (BLOCK // GROUP) + tl.arange(0, BLOCK // GROUP)
        index = group[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    else:
        index = piece * BLOCK + tl.arange(0, BLOCK)
    mask = index < vocab
    logits = tl.load(logits_ptr + index, mask=mask, other=0.0).to(tl.float32)
    key = tl.where(mask, ordered_key(logits), 0).to(tl.uint32)
    best = best_indexed_key(key, index)
    tl.store(best_ptr + tl.program_id(0), best)
    if SEARCHED:
        temperature = tl.load(temperature_ptr + row)
        if temperature == 0.0:
            return
        # Division keeps the order, so it can wait until the maxima are known.
        maxima = ordered_key(tl.div_rn(float_of_key(tl.max(key, axis=1)), temperature))
        tl.store(maxima_ptr + row * num_groups + group, maxima, mask=group < num_groups)
        top_k = tl.load(top_k_ptr + row)
        if (tl.load(top_p_ptr + row) < 1.0) & ((top_k <= 0) | (top_k >= vocab)):
            largest = tl.div_rn(float_of_key((best >> 31).to(tl.uint32)), temperature)
            # A piece of −inf alone: −inf − 0 stays −inf and adds nothing.
            shift = tl.where(largest == float("-inf"), 0.0, largest)
            weight = tl.where(mask, tl.exp(tl.div_rn(logits, temperature) - shift), 0.0)
            tl.store(piece_masses_ptr + tl.program_id(0), tl.sum(weight))


@triton.jit
def _draw_from_best_groups(
    logits_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    min_p_ptr,
    seeds_ptr,
    positions_ptr,
    best_ptr,
    piece_masses_ptr,
    maxima_ptr,
    chosen_ptr,
    out_ptr,
    row_stride,
    vocab,
    splits,
    num_groups,
    SPLIT_BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS_BLOCK: tl.constexpr,
    BEST_GROUPS: tl.constexpr,
):
    """Draws the rows whose thresholds lie in their best groups; for others out is −1."""
    row = tl.program_id(0).to(tl.int64)
    logits_ptr += row * row_stride
    best = _row_best(best_ptr, row, splits, SPLIT_BLOCK)
    temperature = tl.load(temperature_ptr + row)
    if temperature == 0.0:
        tl.store(out_ptr + row, best.to(tl.int64))
        return
    top_k = tl.load(top_k_ptr + row)
    top_k = tl.where(top_k < vocab, top_k, 0)
    top_p = tl.load(top_p_ptr + row)
    tl.store(out_ptr + row, -1)
    if (top_k <= 0) & (top_p >= 1.0):
        return
    largest = _scaled_at(logits_ptr, best, temperature)
    high = ordered_key(largest)
    # The groups to look at: with top_k, the top_k best ones hold all that it keeps.
    group = tl.arange(0, GROUPS_BLOCK)
    maxima_at = maxima_ptr + row * num_groups + group
    maxima = tl.load(maxima_at, mask=group < num_groups, other=0)
    wanted = tl.where((top_k > 0) & (top_k < BEST_GROUPS), top_k, BEST_GROUPS).to(tl.float32)
    present = (maxima > 0).to(tl.float32)
    floor = largest_reaching(maxima, present, wanted, tl.zeros_like(high), high)
    floor = tl.maximum(floor, 1)
    # With too many equals at the floor, what lies above it.
    too_many = tl.sum((maxima >= floor).to(tl.int32)) > BEST_GROUPS
    floor += too_many.to(tl.uint32)
    kept = maxima >= floor
    chosen_ptr += row * BEST_GROUPS
    place = tl.cumsum(kept.to(tl.int32), axis=0) - 1
    tl.store(chosen_ptr + place, group, mask=kept)
    tl.debug_barrier()  # what other threads stored is read below
    slot = tl.arange(0, BEST_GROUPS)
    num_chosen = tl.sum(kept.to(tl.int32))
    chosen = tl.load(chosen_ptr + slot, mask=slot < num_chosen, other=num_groups)
    index = chosen[:, None] * GROUP + tl.arange(0, GROUP)[None, :]
    mask = index < vocab
    logits = tl.load(logits_ptr + index, mask=mask, other=0.0).to(tl.float32)
    scaled = tl.div_rn(logits, temperature)
    key = tl.where(mask, ordered_key(scaled), 0)
    mask = key >= floor  # below the floor other groups have tokens too
    weight = tl.where(mask, tl.exp(scaled - largest), 0.0)
    threshold = floor
    if top_k > 0:
        one = mask.to(tl.float32)
        if tl.sum(one) < top_k:
            return
        threshold = largest_reaching(key, one, top_k.to(tl.float32), floor, high)
        weight = tl.where(key >= threshold, weight, 0.0)
        total = tl.sum(weight)
    else:
        split = tl.arange(0, SPLIT_BLOCK)
        masses_at = piece_masses_ptr + row * splits + split
        masses = tl.load(masses_at, mask=split < splits, other=0.0)
        bests = tl.load(best_ptr + row * splits + split, mask=split < splits, other=0)
        piece_largest = tl.div_rn(float_of_key((bests >> 31).to(tl.uint32)), temperature)
        total = tl.sum(tl.where(masses > 0, masses * tl.exp(piece_largest - largest), 0.0))
    if top_p < 1.0:
        if tl.sum(weight) < top_p * total:
            return
        threshold = largest_reaching(key, weight, top_p * total, threshold, high)
    # However small top_p is, the most likely tokens stay.
    threshold = tl.minimum(threshold, high)
    min_p = tl.load(min_p_ptr + row)
    weight = tl.where((key >= threshold) & (weight >= min_p), weight, 0.0)
    uniform = _uniform(seeds_ptr, positions_ptr, row)
    part, before, target = _part_of_draw(tl.sum(weight, axis=1), uniform, BEST_GROUPS)
    start = tl.load(chosen_ptr + part) * GROUP
    token = _draw_within(
        logits_ptr, start, vocab, temperature, largest, threshold, min_p, before, target, GROUP
    )
    tl.store(out_ptr + row, token.to(tl.int64))


@triton.jit
def _sums_above(
    logits_ptr,
    vocab,
    temperature,
    largest,
    floor,
    first,
    step,
    BY_MASS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """Number or mass of a row's tokens of key >= floor and >= first, first + step, + 2 · step."""
    a = tl.zeros([BLOCK], tl.float32)
    b = tl.zeros([BLOCK], tl.float32)
    c = tl.zeros([BLOCK], tl.float32)
    for start in range(0, vocab, BLOCK):
        index = start + tl.arange(0, BLOCK)
        mask = index < vocab
        logits = tl.load(logits_ptr + index, mask=mask, other=0.0).to(tl.float32)
        scaled = tl.div_rn(logits, temperature)
        key = tl.where(mask, ordered_key(scaled), 0)
        weight = (key >= floor).to(tl.float32)
        if BY_MASS:
            weight = tl.where(key >= floor, tl.exp(scaled - largest), 0.0)
        a += tl.where(key >= first, weight, 0.0)
        b += tl.where(key >= first + step, weight, 0.0)
        c += tl.where(key >= first + 2 * step, weight, 0.0)
    return tl.sum(a), tl.sum(b), tl.sum(c)


@triton.jit
def _search(
    logits_ptr,
    vocab,
    temperature,
    largest,
    floor,
    wanted,
    BY_MASS: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The largest threshold that tokens of `wanted` number or mass reach: 2 bits a pass."""
    threshold = tl.full([], 0, tl.uint32)
    step = tl.full([], 0x40000000, tl.uint32)
    for _ in range(16):
        a, b, c = _sums_above(
            logits_ptr,
            vocab,
            temperature,
            largest,
            floor,
            threshold + step,
            step,
            BY_MASS=BY_MASS,
            BLOCK=BLOCK,
        )
        # Sums fall with the threshold: those that reach are the first ones.
        threshold += tl.where(a >= wanted, step, 0).to(tl.uint32)
        threshold += tl.where(b >= wanted, step, 0).to(tl.uint32)
        threshold += tl.where(c >= wanted, step, 0).to(tl.uint32)
        step = step >> 2
    return threshold


@triton.jit
def _search_rows(
    logits_ptr,
    temperature_ptr,
    top_k_ptr,
    top_p_ptr,
    best_ptr,
    out_ptr,
    thresholds_ptr,
    row_stride,
    vocab,
    splits,
    SPLIT_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    """The thresholds of rows that are not drawn yet, from whole rows."""
    row = tl.program_id(0).to(tl.int64)
    if tl.load(out_ptr + row) >= 0:
        return
    logits_ptr += row * row_stride
    temperature = tl.load(temperature_ptr + row)
    best = _row_best(best_ptr, row, splits, SPLIT_BLOCK)
    largest = _scaled_at(logits_ptr, best, temperature)
    threshold = tl.full([], 1, tl.uint32)
    top_k = tl.load(top_k_ptr + row)
    if (top_k > 0) & (top_k < vocab):
        wanted = top_k.to(tl.float32)
        threshold = _search(
            logits_ptr, vocab, temperature, largest, threshold, wanted, BY_MASS=False, BLOCK=BLOCK
        )
    top_p = tl.load(top_p_ptr + row)
    if top_p < 1.0:
        total, _, _ = _sums_above(
            logits_ptr,
            vocab,
            temperature,
            largest,
            threshold,
            threshold,
            threshold * 0,
            BY_MASS=True,
            BLOCK=BLOCK,
        )
        p_threshold = _search(
            logits_ptr,
            vocab,
            temperature,
            largest,
            threshold,
            top_p * total,
            BY_MASS=True,
            BLOCK=BLOCK,
        )
        threshold = tl.maximum(threshold, p_threshold)
    tl.store(thresholds_ptr + row, tl.minimum(threshold, ordered_key(largest)))


@triton.jit
def _kept_mass(
    logits_ptr,
    temperature_ptr,
    min_p_ptr,
    best_ptr,
    out_ptr,
    thresholds_ptr,
    masses_ptr,
    row_stride,
    vocab,
    splits,
    SEARCHED: tl.constexpr,
    SPLIT_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = (tl.program_id(0) // splits).to(tl.int64)
    threshold = tl.full([], 0, tl.uint32)
    if SEARCHED:
        if tl.load(out_ptr + row) >= 0:
            return
        threshold = tl.load(thresholds_ptr + row)
    temperature = tl.load(temperature_ptr + row)
    if temperature == 0.0:
        return
    logits_ptr += row * row_stride
    index = (tl.program_id(0) % splits) * BLOCK + tl.arange(0, BLOCK)
    mask = index < vocab
    logits = tl.load(logits_ptr + index, mask=mask, other=0.0).to(tl.float32)
    best = _row_best(best_ptr, row, splits, SPLIT_BLOCK)
    largest = _scaled_at(logits_ptr, best, temperature)
    weight = _kept_weight(logits, temperature, largest, threshold, tl.load(min_p_ptr + row), mask)
    tl.store(masses_ptr + tl.program_id(0), tl.sum(weight, axis=0))


@triton.jit
def _draw(
    logits_ptr,
    temperature_ptr,
    min_p_ptr,
    seeds_ptr,
    positions_ptr,
    best_ptr,
    out_ptr,
    thresholds_ptr,
    masses_ptr,
    row_stride,
    vocab,
    splits,
    SEARCHED: tl.constexpr,
    SPLIT_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
):
    row = tl.program_id(0).to(tl.int64)
    threshold = tl.full([], 0, tl.uint32)
    if SEARCHED:
        if tl.load(out_ptr + row) >= 0:
            return
        threshold = tl.load(thresholds_ptr + row)
    logits_ptr += row * row_stride
    best = _row_best(best_ptr, row, splits, SPLIT_BLOCK)
    temperature = tl.load(temperature_ptr + row)
    if temperature == 0.0:
        tl.store(out_ptr + row, best.to(tl.int64))
        return
    split = tl.arange(0, SPLIT_BLOCK)
    masses = tl.load(masses_ptr + row * splits + split, mask=split < splits, other=0.0)
    uniform = _uniform(seeds_ptr, positions_ptr, row)
    piece, before, target = _part_of_draw(masses, uniform, SPLIT_BLOCK)
    largest = _scaled_at(logits_ptr, best, temperature)
    min_p = tl.load(min_p_ptr + row)
    token = _draw_within(
        logits_ptr,
        piece * BLOCK,
        vocab,
        temperature,
        largest,
        threshold,
        min_p,
        before,
        target,
        BLOCK,
    )
    tl.store(out_ptr + row, token.to(tl.int64))


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
    searched = any_top_k or any_top_p
    device = logits.device
    best = torch.empty(num_rows, launch.splits, dtype=torch.int64, device=device)
    masses = torch.empty(num_rows, launch.splits, device=device)
    maxima = torch.empty(num_rows, launch.groups, dtype=torch.uint32, device=device)
    thresholds = torch.empty(num_rows, dtype=torch.uint32, device=device)
    out = torch.empty(num_rows, dtype=torch.int64, device=device)
    sizes = (logits.stride(0), vocab, launch.splits)
    _summarise_piece[(num_rows * launch.splits,)](
        logits,
        temperature,
        top_k,
        top_p,
        best,
        masses,
        maxima,
        *sizes,
        launch.groups,
        SEARCHED=searched,
        GROUP=launch.group,
        BLOCK=launch.block,
        num_warps=launch.num_warps,
    )
    if searched:
        chosen = torch.empty(num_rows, launch.best_groups, dtype=torch.int32, device=device)
        _draw_from_best_groups[(num_rows,)](
            logits,
            temperature,
            top_k,
            top_p,
            min_p,
            seeds,
            positions,
            best,
            masses,
            maxima,
            chosen,
            out,
            *sizes,
            launch.groups,
            SPLIT_BLOCK=launch.split_block,
            GROUP=launch.group,
            GROUPS_BLOCK=launch.groups_block,
            BEST_GROUPS=launch.best_groups,
            num_warps=min(max(launch.best_groups * launch.group // 512, 1), 16),
        )
        _search_rows[(num_rows,)](
            logits,
            temperature,
            top_k,
            top_p,
            best,
            out,
            thresholds,
            *sizes,
            SPLIT_BLOCK=launch.split_block,
            BLOCK=_SCAN_BLOCK,
            num_warps=16,
        )
    pieces = {
        "SEARCHED": searched,
        "SPLIT_BLOCK": launch.split_block,
        "BLOCK": launch.block,
        "num_warps": launch.num_warps,
    }
    _kept_mass[(num_rows * launch.splits,)](
        logits, temperature, min_p, best, out, thresholds, masses, *sizes, **pieces
    )
    _draw[(num_rows,)](
        logits,
        temperature,
        min_p,
        seeds,
        positions,
        best,
        out,
        thresholds,
        masses,
        *sizes,
        **pieces,
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
