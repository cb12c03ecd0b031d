"""sample in plain torch, float32 inside."""

import torch
from torch import Tensor

_MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
_WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF
_FEW = 1024


def philox_uniform(seeds: Tensor, positions: Tensor) -> Tensor:
    """u in [0, 1), float32 [n]: Philox4x32-10 (Salmon et al. 2011).

    Key: the seed's two 32-bit halves. Counter: the position's two halves, 0, 0.
    The first output word's upper 24 bits make u.
    """
    key = [seeds & _MASK, (seeds >> 32) & _MASK]
    zero = torch.zeros_like(positions)
    counter = [positions & _MASK, (positions >> 32) & _MASK, zero, zero]
    for _ in range(10):
        high0, low0 = _multiply(counter[0], _MULTIPLIERS[0])
        high1, low1 = _multiply(counter[2], _MULTIPLIERS[1])
        counter = [high1 ^ counter[1] ^ key[0], low1, high0 ^ counter[3] ^ key[1], low0]
        key = [(k + w) & _MASK for k, w in zip(key, _WEYL, strict=True)]
    return (counter[0] >> 8).float() * 2.0**-24


def _multiply(x: Tensor, factor: int) -> tuple[Tensor, Tensor]:
    # 32 x 32 -> 64 bits in int64 without overflow: by the factor's 16-bit halves.
    low = x * (factor & 0xFFFF)
    middle = x * (factor >> 16) + (low >> 16)
    return middle >> 16, ((middle & 0xFFFF) << 16) | (low & 0xFFFF)


def sample(
    logits: Tensor,
    temperature: Tensor,
    top_k: Tensor,
    top_p: Tensor,
    min_p: Tensor,
    seeds: Tensor,
    positions: Tensor,
) -> Tensor:
    greedy = logits.max(dim=-1).indices
    if bool((temperature == 0).all()):
        return greedy
    # Counted from the largest logit, so that a tiny temperature gives -inf and never inf.
    scaled = logits.float() - logits.float().amax(-1, keepdim=True)
    scaled /= torch.where(temperature == 0, 1.0, temperature)[:, None]
    if bool((top_k > 0).any()) or bool((top_p < 1).any()):
        scaled = _keep_top(scaled, top_k, top_p)
    probs = torch.softmax(scaled, dim=-1)
    probs = probs.masked_fill(probs < min_p[:, None] * probs.amax(-1, keepdim=True), 0.0)
    cumulative = probs.double().cumsum(-1)
    target = philox_uniform(seeds, positions).double()[:, None] * cumulative[:, -1:]
    drawn = torch.searchsorted(cumulative, target, right=True)[:, 0]
    return torch.where(temperature == 0, greedy, drawn)


def _keep_top(scaled: Tensor, top_k: Tensor, top_p: Tensor) -> Tensor:
    vocab, top_p = scaled.shape[1], top_p[:, None]
    has_k = ((top_k > 0) & (top_k < vocab))[:, None]
    # Most cuts lie among a few likeliest tokens; to order them all takes a CPU ten times as long.
    few = min(_FEW, vocab)
    are_few = int((top_k * has_k[:, 0]).max()) <= few < vocab
    for width in (few, vocab) if are_few else (vocab,):
        ordered = scaled.topk(width, dim=-1).values
        last = torch.where(has_k[:, 0], top_k, 1).long()[:, None] - 1
        kth = torch.where(has_k, ordered.gather(1, last), float("-inf"))
        kept = ordered.masked_fill(ordered < kth, float("-inf"))
        of_kept, of_all = (x.logsumexp(-1, keepdim=True) for x in (kept, scaled))
        whole = torch.where(has_k, of_kept, of_all)
        probs = (kept - whole).exp()
        # A token belongs to the smallest set while the mass before it is below top_p.
        before = probs.cumsum(-1) - probs
        inside = (before < top_p) | (top_p >= 1)
        # What follows the last of these belongs to no set: it is below the k-th, or past top_p.
        is_whole = torch.where(has_k, ordered[:, -1:] < kth, (top_p >= 1) | ~inside[:, -1:])
        if bool(is_whole.all()):
            break
    inside[:, 0] = True
    cut = kept.masked_fill(~inside, float("inf")).amin(-1, keepdim=True)
    floor = torch.where(top_p < 1, torch.maximum(cut, kth), kth)
    return scaled.masked_fill(scaled < floor, float("-inf"))


def apply_penalties(
    logits: Tensor,
    prompt_mask: Tensor,
    output_counts: Tensor,
    repetition: Tensor,
    presence: Tensor,
    frequency: Tensor,
) -> None:
    seen = prompt_mask | (output_counts > 0)
    factor = torch.where(seen, repetition[:, None], 1.0)
    logits.copy_(torch.where(logits > 0, logits / factor, logits * factor))
    logits -= frequency[:, None] * output_counts
    logits -= presence[:, None] * (output_counts > 0)


def apply_masks(logits: Tensor, words: Tensor) -> None:
    bits = (words[:, :, None] >> torch.arange(32, device=words.device)) & 1
    logits.masked_fill_(bits.flatten(1)[:, : logits.shape[1]] == 0, float("-inf"))


def token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    return torch.log_softmax(logits.float(), dim=-1).gather(1, tokens.long())
