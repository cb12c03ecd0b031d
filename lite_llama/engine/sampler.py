"""From the logits of a step to the next token of each request."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from lite_llama import ops
from lite_llama.engine.request import Request, TokenLogprob, TokenLogprobs

_NEVER = float("-inf")


def sample(
    logits: Tensor,
    requests: Sequence[Request],
    *,
    masks: Mapping[int, bytes] | None = None,
    ahead: int = 0,
) -> Tensor:
    """Draw one token a row: logits float32 [num_rows, vocab] (changed) -> int64 [num_rows].

    Order: logit bias and the ban of early stops, penalties, the grammars' masks (bits of the
    allowed tokens, by row; see `Grammar.mask`), then `ops.sample`.
    `ahead`: tokens of each request that are drawn already but not known to the host.
    """
    _apply_bias(logits, requests)
    _apply_penalties(logits, requests)
    if masks:
        _apply_masks(logits, masks)
    if is_greedy(requests):
        return ops.argmax(logits)[1]
    return ops.sample(logits, _rows(requests, logits.device, ahead))


def is_greedy(requests: Sequence[Request]) -> bool:
    """Whether every row's token is its likeliest."""
    return all(request.params.temperature == 0 for request in requests)


def logprobs_of(
    logits: Tensor, tokens: Sequence[int], num_top: Sequence[int]
) -> list[TokenLogprobs]:
    """Per row of float32 logits: the given token, then the num_top[i] most likely ones."""
    values = torch.log_softmax(logits, dim=-1)
    chosen = values.gather(1, torch.tensor(tokens, device=values.device)[:, None])
    ranks = ((values > chosen).sum(-1) + 1).tolist()
    top = values.topk(min(max(1, *num_top), values.shape[1]), dim=-1)
    rows = zip(top.indices.tolist(), top.values.tolist(), strict=True)
    described: list[TokenLogprobs] = []
    for i, (ids, best) in enumerate(rows):
        alternatives = [
            TokenLogprob(token, value, rank)
            for rank, (token, value) in enumerate(zip(ids, best, strict=True), start=1)
        ]
        own = TokenLogprob(tokens[i], float(chosen[i, 0]), ranks[i])
        described.append([own, *alternatives[: num_top[i]]])
    return described


def _apply_bias(logits: Tensor, requests: Sequence[Request]) -> None:
    for row, request in enumerate(requests):
        bias = request.params.logit_bias
        if bias:
            logits[row, list(bias)] += torch.tensor(list(bias.values()), device=logits.device)
        if len(request.output_token_ids) < request.params.min_tokens and request.stop_token_ids:
            logits[row, list(request.stop_token_ids)] = _NEVER


def _apply_penalties(logits: Tensor, requests: Sequence[Request]) -> None:
    rows = [row for row, request in enumerate(requests) if request.params.has_penalties]
    if not rows:
        return
    device, vocab = logits.device, logits.shape[1]
    chosen = [requests[row] for row in rows]
    counts = torch.stack(
        [
            torch.bincount(torch.tensor(tokens, dtype=torch.int64), minlength=vocab)
            for request in chosen
            for tokens in (request.prompt_token_ids, request.output_token_ids)
        ]
    ).view(len(rows), 2, vocab)
    penalised = logits[rows]
    ops.apply_penalties(
        penalised,
        (counts[:, 0] > 0).to(device),
        counts[:, 1].int().to(device),
        _column([request.params.repetition_penalty for request in chosen], device),
        _column([request.params.presence_penalty for request in chosen], device),
        _column([request.params.frequency_penalty for request in chosen], device),
    )
    logits[rows] = penalised


def _apply_masks(logits: Tensor, masks: Mapping[int, bytes]) -> None:
    rows = list(masks)
    packed = torch.frombuffer(bytearray(b"".join(masks.values())), dtype=torch.uint8)
    packed = packed.view(len(rows), -1).to(logits.device, non_blocking=True)
    shifts = torch.arange(8, dtype=torch.uint8, device=logits.device)
    allowed = ((packed[:, :, None] >> shifts) & 1).bool().flatten(1)[:, : logits.shape[1]]
    logits[rows] = logits[rows].masked_fill(~allowed, _NEVER)


def _rows(requests: Sequence[Request], device: torch.device, ahead: int) -> ops.SamplingRows:
    params = [request.params for request in requests]
    return ops.SamplingRows(
        temperature=_column([p.temperature for p in params], device),
        top_k=torch.tensor([max(p.top_k, 0) for p in params], dtype=torch.int32, device=device),
        top_p=_column([p.top_p for p in params], device),
        min_p=_column([p.min_p for p in params], device),
        seeds=torch.tensor([request.seed for request in requests], device=device),
        positions=torch.tensor([r.num_tokens + ahead for r in requests], device=device),
        any_top_k=any(p.top_k > 0 for p in params),
        any_top_p=any(p.top_p < 1 for p in params),
    )


def _column(values: list[float], device: torch.device) -> Tensor:
    return torch.tensor(values, dtype=torch.float32, device=device)
