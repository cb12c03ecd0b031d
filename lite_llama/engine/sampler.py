"""From the logits of a step to the next token of each request."""

from collections.abc import Sequence

import torch
from torch import Tensor

from lite_llama import ops
from lite_llama.engine.request import Request, TokenLogprob, TokenLogprobs
from lite_llama.engine.upload import upload

_NEVER = float("-inf")


class Sampler:
    """Draws the tokens of one engine; what stays between its steps stays on the device."""

    def __init__(self) -> None:
        # Whom the rows are of; each of them draws a token a call for as long as they stay together.
        self._requests: list[Request] = []
        self._rows: ops.SamplingRows | None = None
        self._words: Tensor | None = None  # masks on the host, pinned for a GPU

    @torch.inference_mode()
    def draw(
        self, logits: Tensor, requests: Sequence[Request]
    ) -> tuple[Tensor, dict[str, TokenLogprobs]]:
        """Tokens int64 [num_requests] and, where asked, log-probabilities by request id.

        logits float32 [num_requests, vocab] (changed). A grammar that breaks is noted in its
        request.
        """
        masks = self._grammar_masks(requests, logits)  # while a GPU still works on the logits
        asking = [i for i, request in enumerate(requests) if request.params.logprobs is not None]
        plain = logits[asking] if asking else logits  # a copy: sampling changes the logits
        drawn = self.sample(logits, requests, masks=masks)
        if not asking:
            return drawn, {}
        num_top = [requests[i].params.logprobs or 0 for i in asking]
        rows = logprobs_of(plain, drawn[asking].tolist(), num_top)
        return drawn, {requests[i].request_id: row for i, row in zip(asking, rows, strict=True)}

    @torch.inference_mode()
    def sample(
        self,
        logits: Tensor,
        requests: Sequence[Request],
        *,
        masks: Tensor | None = None,
    ) -> Tensor:
        """Draw one token a row: logits float32 [num_rows, vocab] (changed) -> int64 [num_rows].

        Order: logit bias and the ban of early stops, penalties, the grammars' `masks` (see
        `ops.apply_masks`), then `ops.sample`. Nothing in here waits for the device.
        """
        if not all(request.is_plain for request in requests):
            _apply_bias(logits, requests)
            _apply_penalties(logits, requests)
        if masks is not None:
            ops.apply_masks(logits, masks)
        if is_greedy(requests):
            return ops.argmax(logits)[1]
        return ops.sample(logits, self._next_rows(requests, logits.device))

    def _next_rows(self, requests: Sequence[Request], device: torch.device) -> ops.SamplingRows:
        """The settings of these requests; of those of the call before, one position on."""
        if self._rows is not None and self._requests == list(requests):
            self._rows.positions.add_(1)
        else:
            self._rows = _rows(requests, device)
            self._requests = list(requests)
        return self._rows

    def _grammar_masks(self, requests: Sequence[Request], logits: Tensor) -> Tensor | None:
        """The tokens allowed in each row, int32 [num_rows, ceil(vocab / 32)], if any has a
        grammar."""
        grammars = {
            row: request.grammar
            for row, request in enumerate(requests)
            if request.grammar is not None and request.finish_reason is None
        }
        if not grammars:
            return None
        # Read by a copy that is done: the tokens it led to have been read before these are asked.
        num_words = -(-logits.shape[1] // 32)
        if self._words is None or len(self._words) < len(requests):
            shape = (len(requests), num_words)
            self._words = torch.empty(shape, dtype=torch.int32, pin_memory=logits.is_cuda)
        words = self._words[: len(requests)]
        for row in range(len(requests)):
            if row not in grammars:
                words[row] = -1
        kind = type(next(iter(grammars.values())))
        for row, error in kind.fill_masks(grammars, words.numpy()).items():
            requests[row].grammar_error = error
        return words.to(logits.device, non_blocking=True)


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
    device, vocab = logits.device, logits.shape[1]
    biases: dict[int, float] = {}  # by place in the flat logits
    banned: list[int] = []
    for row, request in enumerate(requests):
        params = request.params
        for token, bias in (params.logit_bias or {}).items():
            biases[row * vocab + token] = bias
        if len(request.output_token_ids) < params.min_tokens:
            banned += [row * vocab + token for token in request.stop_token_ids]
    flat = logits.view(-1)
    if biases:
        values = upload([*biases.values()], torch.float32, device)
        flat.index_add_(0, upload([*biases], torch.int64, device), values)
    if banned:
        flat.index_fill_(0, upload(banned, torch.int64, device), _NEVER)


def _apply_penalties(logits: Tensor, requests: Sequence[Request]) -> None:
    rows = [row for row, request in enumerate(requests) if request.params.has_penalties]
    if not rows:
        return
    device, vocab = logits.device, logits.shape[1]
    chosen = [requests[row] for row in rows]
    # Counted on the device: a row of counts is as long as the vocabulary.
    texts = [text for one in chosen for text in (one.prompt_token_ids, one.output_token_ids)]
    places = [i * vocab + token for i, text in enumerate(texts) for token in text]
    counts = torch.zeros(len(texts) * vocab, dtype=torch.int32, device=device)
    index = upload(places, torch.int64, device)
    counts.index_add_(0, index, torch.ones_like(index, dtype=torch.int32))
    counts = counts.view(len(rows), 2, vocab)
    selected = upload(rows, torch.int64, device)
    penalised = logits[selected]
    ops.apply_penalties(
        penalised,
        counts[:, 0] > 0,
        counts[:, 1],
        *(
            upload([getattr(one.params, name) for one in chosen], torch.float32, device)
            for name in ("repetition_penalty", "presence_penalty", "frequency_penalty")
        ),
    )
    logits[selected] = penalised


def _rows(requests: Sequence[Request], device: torch.device) -> ops.SamplingRows:
    params = [request.params for request in requests]
    places = [[one.seed for one in requests], [one.num_tokens for one in requests]]
    seeds, positions = upload(places, torch.int64, device)
    strengths = [
        [p.temperature for p in params],
        [p.top_p for p in params],
        [p.min_p for p in params],
    ]
    temperature, top_p, min_p = upload(strengths, torch.float32, device)
    return ops.SamplingRows(
        temperature=temperature,
        top_k=upload([max(p.top_k, 0) for p in params], torch.int32, device),
        top_p=top_p,
        min_p=min_p,
        seeds=seeds,
        positions=positions,
        any_top_k=any(p.top_k > 0 for p in params),
        any_top_p=any(p.top_p < 1 for p in params),
    )
