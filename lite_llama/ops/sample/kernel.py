"""sample in Triton, without a sort.

The first kernel reads the logits once and leaves, for every piece of a row, its largest logit and
its share of the probability mass, and for every group of 16 neighbours their maximum. Rows that
top_k or top_p cut are then drawn by one program each: the most likely tokens all lie in the groups
with the largest maxima, so it reads only those again, and searches the bits of the logits' ordered
keys for the thresholds of top_k and top_p. What does not fit there (top_k beyond the groups, a
nucleus of many thousand tokens, ties by the thousand) is searched over the whole row, by kernels
that otherwise leave at once: top_k by a program a row, top_p by a program a piece, 4 bits a launch.
Rows without a cut need no threshold: their kept mass is summed piece by piece, and one program a
row inverts the cumulative distribution in the piece that holds the draw. Nothing depends on other
rows, and no result on the order programs run in.

The kernels of a draw are dependent launches that wait first thing, so that the next one's programs
are there when one has ended: most of these launches are short.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra.cuda import gdc_launch_dependents, gdc_wait

from lite_llama.kernel_lib.gpu import gpu_spec
from lite_llama.kernel_lib.ordered_keys import (
    best_indexed_key,
    float_of_key,
    index_of,
    largest_reaching,
    ordered_key,
    sums_reaching,
)
from lite_llama.kernel_lib.rows import as_rows
from lite_llama.ops.sample.launch import choose_launch

_SCAN_BLOCK = 8192
# A launch of the search for top_p over whole rows settles 4 bits; narrow floats leave bits unused.
_BITS_PER_PASS = 4
_NUM_PASSES = 32 // _BITS_PER_PASS


@triton.jit
def _begin(OVERLAP: tl.constexpr):
    """Let the next kernel come, and wait for the one before."""
    if OVERLAP:
        gdc_launch_dependents()
        gdc_wait()


@triton.jit
def _row_best(best_ptr, row, splits, SPLIT_BLOCK: tl.constexpr):
    """The index of the row's largest logit, from the pieces' largest."""
    split = tl.arange(0, SPLIT_BLOCK)
    keys = tl.load(best_ptr + row * splits + split, mask=split < splits, other=0)
    return index_of(tl.max(keys, axis=0))


@triton.jit
def _logit_at(logits_ptr, index):
    return tl.load(logits_ptr + index).to(tl.float32)


@triton.jit
def _weight(logits, largest, temperature, mask):
    """The unnormalised probability: exp of a scaled logit, counted from the largest so that a tiny
    temperature gives −inf and never inf. 0 where masked."""
    return tl.where(mask, tl.exp(tl.div_rn(logits - largest, temperature)), 0.0)


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
    """The weight of the tokens that top_k, top_p and min_p keep, 0 elsewhere."""
    weight = _weight(logits, largest, temperature, mask & (ordered_key(logits) >= threshold))
    return tl.where(weight >= min_p, weight, 0.0)


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
    OVERLAP: tl.constexpr,
):
    _begin(OVERLAP)
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
        maxima_at = maxima_ptr + row * num_groups + group
        tl.store(maxima_at, tl.max(key, axis=1), mask=group < num_groups)
        temperature = tl.load(temperature_ptr + row)
        top_k = tl.load(top_k_ptr + row)
        only_p = (tl.load(top_p_ptr + row) < 1.0) & ((top_k <= 0) | (top_k >= vocab))
        if only_p & (temperature > 0.0):
            largest = float_of_key((best >> 31).to(tl.uint32))
            # A piece of −inf alone: −inf − 0 stays −inf and adds nothing.
            shift = tl.where(largest == float("-inf"), 0.0, largest)
            weight = _weight(logits, shift, temperature, mask)
            tl.store(piece_masses_ptr + tl.program_id(0), tl.sum(weight))


@triton.jit
def _mass_of_row(
    best_ptr, piece_masses_ptr, row, largest, temperature, splits, SPLIT_BLOCK: tl.constexpr
):
    """The weight of the whole row, from that of its pieces."""
    split = row * splits + tl.arange(0, SPLIT_BLOCK)
    mask = tl.arange(0, SPLIT_BLOCK) < splits
    masses = tl.load(piece_masses_ptr + split, mask=mask, other=0.0)
    bests = tl.load(best_ptr + split, mask=mask, other=0)
    piece_largest = float_of_key((bests >> 31).to(tl.uint32))
    return tl.sum(masses * _weight(piece_largest, largest, temperature, masses > 0))


@triton.jit
def _draw_from_groups(
    logits_ptr,
    vocab,
    maxima,
    chosen_ptr,
    num_groups,
    temperature,
    top_k,
    top_p,
    min_p,
    uniform,
    largest,
    mass,
    GROUP: tl.constexpr,
    GROUPS_BLOCK: tl.constexpr,
    BEST_GROUPS: tl.constexpr,
):
    """The token drawn from the groups with the largest maxima; −1 if the row's thresholds may lie
    elsewhere. `mass` is the whole row's, needed without top_k."""
    high = ordered_key(largest)
    # The groups to look at: with top_k, the top_k best ones hold all that it keeps.
    wanted = tl.where((top_k > 0) & (top_k < BEST_GROUPS), top_k, BEST_GROUPS).to(tl.float32)
    present = (maxima > 0).to(tl.float32)
    floor = largest_reaching(maxima, present, wanted, tl.zeros_like(high), high)
    floor = tl.maximum(floor, 1)
    # With too many equals at the floor, what lies above it.
    too_many = tl.sum((maxima >= floor).to(tl.int32)) > BEST_GROUPS
    floor += too_many.to(tl.uint32)
    kept = maxima >= floor
    place = tl.cumsum(kept.to(tl.int32), axis=0) - 1
    tl.store(chosen_ptr + place, tl.arange(0, GROUPS_BLOCK), mask=kept)
    tl.debug_barrier()  # what other threads stored is read below
    slot = tl.arange(0, BEST_GROUPS)
    num_chosen = tl.sum(kept.to(tl.int32))
    chosen = tl.load(chosen_ptr + slot, mask=slot < num_chosen, other=num_groups)
    index = tl.reshape(chosen[:, None] * GROUP + tl.arange(0, GROUP)[None, :], BEST_GROUPS * GROUP)
    logits = tl.load(logits_ptr + index, mask=index < vocab, other=0.0).to(tl.float32)
    key = tl.where(index < vocab, ordered_key(logits), 0).to(tl.uint32)
    mask = key >= floor  # below the floor other groups have tokens too
    weight = _weight(logits, largest, temperature, mask)
    threshold = floor
    fits = num_chosen > 0
    if top_k > 0:
        one = mask.to(tl.float32)
        fits = tl.sum(one) >= top_k
        if fits:
            threshold = largest_reaching(key, one, top_k.to(tl.float32), floor, high)
        weight = tl.where(key >= threshold, weight, 0.0)
        mass = tl.sum(weight)
    if fits & (top_p < 1.0):
        fits = tl.sum(weight) >= top_p * mass
        if fits:
            threshold = largest_reaching(key, weight, top_p * mass, threshold, high)
    token = tl.full([], -1, tl.int32)
    if fits:
        # However small top_p is, the most likely tokens stay.
        threshold = tl.minimum(threshold, high)
        weight = tl.where((key >= threshold) & (weight >= min_p), weight, 0.0)
        masses = tl.sum(tl.reshape(weight, BEST_GROUPS, GROUP), axis=1)
        part, before, target = _part_of_draw(masses, uniform, BEST_GROUPS)
        start = tl.load(chosen_ptr + part) * GROUP
        token = _draw_within(
            logits_ptr, start, vocab, temperature, largest, threshold, min_p, before, target, GROUP
        )
    return token


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
    thresholds_ptr,
    row_stride,
    vocab,
    splits,
    num_groups,
    SPLIT_BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    GROUPS_BLOCK: tl.constexpr,
    BEST_GROUPS: tl.constexpr,
    FEW_GROUPS: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """Draws the rows whose thresholds lie in their best groups; for others out is −1."""
    _begin(OVERLAP)
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
    tl.store(thresholds_ptr + row, 1)
    if (top_k <= 0) & (top_p >= 1.0):
        return
    largest = _logit_at(logits_ptr, best)
    mass = _mass_of_row(best_ptr, piece_masses_ptr, row, largest, temperature, splits, SPLIT_BLOCK)
    min_p = tl.load(min_p_ptr + row)
    uniform = _uniform(seeds_ptr, positions_ptr, row)
    group = tl.arange(0, GROUPS_BLOCK)
    maxima_at = maxima_ptr + row * num_groups + group
    maxima = tl.load(maxima_at, mask=group < num_groups, other=0)
    chosen_ptr += row * BEST_GROUPS
    token = tl.full([], -1, tl.int32)
    # A quarter: the rest is room for groups that tie. Without top_k few hold most nuclei.
    if top_k <= FEW_GROUPS // 4:
        token = _draw_from_groups(
            logits_ptr,
            vocab,
            maxima,
            chosen_ptr,
            num_groups,
            temperature,
            top_k,
            top_p,
            min_p,
            uniform,
            largest,
            mass,
            GROUP,
            GROUPS_BLOCK,
            FEW_GROUPS,
        )
        tl.debug_barrier()  # the chosen groups may be written again
    if token < 0:
        token = _draw_from_groups(
            logits_ptr,
            vocab,
            maxima,
            chosen_ptr,
            num_groups,
            temperature,
            top_k,
            top_p,
            min_p,
            uniform,
            largest,
            mass,
            GROUP,
            GROUPS_BLOCK,
            BEST_GROUPS,
        )
    tl.store(out_ptr + row, token.to(tl.int64))


@triton.jit
def _search_top_k(
    logits_ptr,
    top_k_ptr,
    out_ptr,
    thresholds_ptr,
    row_stride,
    vocab,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """The top_k-th largest key of rows that are not drawn yet, from whole rows, 2 bits a pass."""
    _begin(OVERLAP)
    row = tl.program_id(0).to(tl.int64)
    top_k = tl.load(top_k_ptr + row)
    if (tl.load(out_ptr + row) >= 0) | (top_k <= 0) | (top_k >= vocab):
        return
    logits_ptr += row * row_stride
    threshold = tl.full([], 0, tl.uint32)
    step = tl.full([], 0x40000000, tl.uint32)
    for _ in range(16):
        counts = tl.zeros([4], tl.float32)
        for start in range(0, vocab, BLOCK):
            index = start + tl.arange(0, BLOCK)
            mask = index < vocab
            logits = tl.load(logits_ptr + index, mask=mask, other=0.0)
            key = tl.where(mask, ordered_key(logits), 0).to(tl.uint32)
            counts += sums_reaching(key, mask.to(tl.float32), threshold, step, 4)
        # Counts fall with the threshold: those that reach are the first ones, the lowest always.
        digit = tl.sum((counts >= top_k).to(tl.int32)) - 1
        threshold += digit.to(tl.uint32) * step
        step = step >> 2
    tl.store(thresholds_ptr + row, threshold)


@triton.jit
def _settled(
    lows_ptr,
    sums_ptr,
    top_p,
    row,
    num_rows,
    splits,
    done,
    BITS: tl.constexpr,
    SPLIT_BLOCK: tl.constexpr,
):
    """The bits of top_p's threshold that `done` > 0 passes have settled: the largest t whose mass
    reaches the share top_p of the first pass' first sum, which is the sum of all."""
    NUM: tl.constexpr = 1 << BITS
    split = tl.arange(0, SPLIT_BLOCK)
    all_at = sums_ptr + (row * splits + split) * NUM
    total = tl.sum(tl.load(all_at, mask=split < splits, other=0.0))
    split = split[:, None]
    previous = (done - 1) * num_rows + row
    at = (previous * splits + split) * NUM + tl.arange(0, NUM)[None, :]
    reached = tl.sum(tl.load(sums_ptr + at, mask=split < splits, other=0.0), axis=0)
    # Sums fall with the threshold: those that reach are the first ones; the lowest always does.
    digit = tl.maximum(tl.sum((reached >= top_p * total).to(tl.int32)) - 1, 0)
    return tl.load(lows_ptr + previous) + (digit.to(tl.uint32) << (32 - BITS * done))


# Neither the pass nor the size of the batch must cost a compilation.
@triton.jit(do_not_specialize=["pass_index", "num_rows"])
def _search_top_p(
    logits_ptr,
    temperature_ptr,
    top_p_ptr,
    best_ptr,
    out_ptr,
    thresholds_ptr,
    lows_ptr,
    sums_ptr,
    row_stride,
    num_rows,
    vocab,
    splits,
    pass_index,
    BITS: tl.constexpr,
    SPLIT_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    """One pass for the rows that are not drawn yet: the mass of a piece's tokens at or above each
    of 2^BITS thresholds, which go on from what the passes before settled."""
    _begin(OVERLAP)
    row = (tl.program_id(0) // splits).to(tl.int64)
    top_p = tl.load(top_p_ptr + row)
    if (tl.load(out_ptr + row) >= 0) | (top_p >= 1.0):
        return
    logits_ptr += row * row_stride
    piece = tl.program_id(0) % splits
    index = piece * BLOCK + tl.arange(0, BLOCK)
    mask = index < vocab
    logits = tl.load(logits_ptr + index, mask=mask, other=0.0).to(tl.float32)
    key = tl.where(mask, ordered_key(logits), 0).to(tl.uint32)
    largest = _logit_at(logits_ptr, _row_best(best_ptr, row, splits, SPLIT_BLOCK))
    kept = key >= tl.load(thresholds_ptr + row)
    weight = _weight(logits, largest, tl.load(temperature_ptr + row), kept)
    low = tl.full([], 0, tl.uint32)
    if pass_index > 0:
        low = _settled(
            lows_ptr, sums_ptr, top_p, row, num_rows, splits, pass_index, BITS, SPLIT_BLOCK
        )
    at = pass_index * num_rows + row
    if piece == 0:
        tl.store(lows_ptr + at, low)
    NUM: tl.constexpr = 1 << BITS
    step = tl.full([], 1, tl.uint32) << (32 - BITS - BITS * pass_index)
    sums = sums_reaching(key, weight, low, step, NUM)
    tl.store(sums_ptr + (at * splits + piece) * NUM + tl.arange(0, NUM), sums)


@triton.jit
def _threshold_of_row(
    top_p_ptr,
    thresholds_ptr,
    lows_ptr,
    sums_ptr,
    row,
    num_rows,
    splits,
    largest,
    NUM_PASSES: tl.constexpr,
    BITS: tl.constexpr,
    SPLIT_BLOCK: tl.constexpr,
):
    """What the searches over the whole row found: the lowest key it keeps."""
    threshold = tl.load(thresholds_ptr + row)
    if NUM_PASSES > 0:  # else there are no sums to read, whatever the row's top_p
        top_p = tl.load(top_p_ptr + row)
        if top_p < 1.0:
            settled = _settled(
                lows_ptr, sums_ptr, top_p, row, num_rows, splits, NUM_PASSES, BITS, SPLIT_BLOCK
            )
            threshold = tl.maximum(threshold, settled)
    # However small top_p is, the most likely tokens stay.
    return tl.minimum(threshold, ordered_key(largest))


@triton.jit(do_not_specialize=["num_rows"])
def _kept_mass(
    logits_ptr,
    temperature_ptr,
    top_p_ptr,
    min_p_ptr,
    best_ptr,
    out_ptr,
    thresholds_ptr,
    lows_ptr,
    sums_ptr,
    masses_ptr,
    row_stride,
    num_rows,
    vocab,
    splits,
    SEARCHED: tl.constexpr,
    NUM_PASSES: tl.constexpr,
    BITS: tl.constexpr,
    SPLIT_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    _begin(OVERLAP)
    row = (tl.program_id(0) // splits).to(tl.int64)
    if SEARCHED & (tl.load(out_ptr + row) >= 0):
        return
    temperature = tl.load(temperature_ptr + row)
    if temperature == 0.0:
        return
    logits_ptr += row * row_stride
    index = (tl.program_id(0) % splits) * BLOCK + tl.arange(0, BLOCK)
    mask = index < vocab
    logits = tl.load(logits_ptr + index, mask=mask, other=0.0).to(tl.float32)
    best = _row_best(best_ptr, row, splits, SPLIT_BLOCK)
    largest = _logit_at(logits_ptr, best)
    threshold = tl.full([], 0, tl.uint32)
    if SEARCHED:
        threshold = _threshold_of_row(
            top_p_ptr,
            thresholds_ptr,
            lows_ptr,
            sums_ptr,
            row,
            num_rows,
            splits,
            largest,
            NUM_PASSES,
            BITS,
            SPLIT_BLOCK,
        )
    weight = _kept_weight(logits, temperature, largest, threshold, tl.load(min_p_ptr + row), mask)
    tl.store(masses_ptr + tl.program_id(0), tl.sum(weight, axis=0))


@triton.jit(do_not_specialize=["num_rows"])
def _draw(
    logits_ptr,
    temperature_ptr,
    top_p_ptr,
    min_p_ptr,
    seeds_ptr,
    positions_ptr,
    best_ptr,
    out_ptr,
    thresholds_ptr,
    lows_ptr,
    sums_ptr,
    masses_ptr,
    row_stride,
    num_rows,
    vocab,
    splits,
    SEARCHED: tl.constexpr,
    NUM_PASSES: tl.constexpr,
    BITS: tl.constexpr,
    SPLIT_BLOCK: tl.constexpr,
    BLOCK: tl.constexpr,
    OVERLAP: tl.constexpr,
):
    _begin(OVERLAP)
    row = tl.program_id(0).to(tl.int64)
    if SEARCHED & (tl.load(out_ptr + row) >= 0):
        return
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
    largest = _logit_at(logits_ptr, best)
    threshold = tl.full([], 0, tl.uint32)
    if SEARCHED:
        threshold = _threshold_of_row(
            top_p_ptr,
            thresholds_ptr,
            lows_ptr,
            sums_ptr,
            row,
            num_rows,
            splits,
            largest,
            NUM_PASSES,
            BITS,
            SPLIT_BLOCK,
        )
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
def _mask(
    logits_ptr,
    words_ptr,
    logits_row_stride,
    words_row_stride,
    vocab,
    splits,
    BLOCK: tl.constexpr,
):
    row = (tl.program_id(0) // splits).to(tl.int64)
    index = (tl.program_id(0) % splits) * BLOCK + tl.arange(0, BLOCK)
    in_row = index < vocab
    # 32 neighbours read one word: the cache serves them.
    words = tl.load(words_ptr + row * words_row_stride + index // 32, mask=in_row, other=-1)
    banned = ((words >> (index % 32)) & 1) == 0
    tl.store(logits_ptr + row * logits_row_stride + index, float("-inf"), mask=banned & in_row)


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
    # Triton 3.6 cannot compile the search over 16-bit loads (RemoveLayoutConversions fails).
    logits = as_rows(logits.float())
    num_rows, vocab = logits.shape
    launch = choose_launch(vocab)
    searched = any_top_k or any_top_p
    device = logits.device
    best = torch.empty(num_rows, launch.splits, dtype=torch.int64, device=device)
    masses = torch.empty(num_rows, launch.splits, device=device)
    maxima = torch.empty(num_rows, launch.groups, dtype=torch.uint32, device=device)
    thresholds = torch.empty(num_rows, dtype=torch.uint32, device=device)
    out = torch.empty(num_rows, dtype=torch.int64, device=device)
    # For each pass of the search for top_p: the bits settled before it, and its sums.
    num_passes = _NUM_PASSES if any_top_p else 0
    lows = torch.empty(num_passes, num_rows, dtype=torch.uint32, device=device)
    sums = torch.empty(num_passes, num_rows, launch.splits, 1 << _BITS_PER_PASS, device=device)
    overlap = gpu_spec(device).has_pdl
    dependent = {"OVERLAP": overlap, "launch_pdl": overlap}
    grid = (num_rows * launch.splits,)
    sizes = (logits.stride(0), vocab, launch.splits)
    _summarise_piece[grid](
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
        **dependent,
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
            thresholds,
            *sizes,
            launch.groups,
            SPLIT_BLOCK=launch.split_block,
            GROUP=launch.group,
            GROUPS_BLOCK=launch.groups_block,
            BEST_GROUPS=launch.best_groups,
            FEW_GROUPS=launch.few_groups,
            num_warps=min(max(launch.best_groups * launch.group // 512, 1), 16),
            **dependent,
        )
    if any_top_k:
        _search_top_k[(num_rows,)](
            logits,
            top_k,
            out,
            thresholds,
            logits.stride(0),
            vocab,
            BLOCK=_SCAN_BLOCK,
            num_warps=16,
            **dependent,
        )
    pass_sizes = (logits.stride(0), num_rows, vocab, launch.splits)
    meta = {
        "BITS": _BITS_PER_PASS,
        "SPLIT_BLOCK": launch.split_block,
        "BLOCK": launch.block,
        "num_warps": launch.num_warps,
        **dependent,
    }
    for i in range(num_passes):
        _search_top_p[grid](
            logits, temperature, top_p, best, out, thresholds, lows, sums, *pass_sizes, i, **meta
        )
    found = (best, out, thresholds, lows, sums, masses)
    meta |= {"SEARCHED": searched, "NUM_PASSES": num_passes}
    _kept_mass[grid](logits, temperature, top_p, min_p, *found, *pass_sizes, **meta)
    _draw[(num_rows,)](
        logits, temperature, top_p, min_p, seeds, positions, *found, *pass_sizes, **meta
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


def apply_masks(logits: Tensor, words: Tensor) -> None:
    """−inf where a row's bits say no, in place; at least one row."""
    num_rows, vocab = logits.shape
    launch = choose_launch(vocab)
    _mask[(num_rows * launch.splits,)](
        logits,
        words,
        logits.stride(0),
        words.stride(0),
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
