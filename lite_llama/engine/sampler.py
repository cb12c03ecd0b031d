"""From the logits of a step to the next token of each request."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from lite_llama import ops
from lite_llama.engine.graph_draw import GREEDY, GraphDraw
from lite_llama.engine.logits import Logits
from lite_llama.engine.recording import Recorded
from lite_llama.engine.request import Request, TokenLogprob, TokenLogprobs
from lite_llama.engine.upload import upload

_NEVER = float("-inf")


class _Kind(NamedTuple):
    """What the launches of a draw hang on."""

    is_masked: bool
    is_greedy: bool
    any_top_k: bool
    any_top_p: bool


class Sampler:
    """Draws the tokens of one engine, at most `num_rows` a call.

    What stays between its steps stays on the device. `record` makes a graph of launches: draws
    from logits in place are then one launch each.
    """

    def __init__(
        self,
        num_rows: int,
        vocab_size: int,
        device: torch.device,
        record: Callable[[Callable[[], Tensor]], Recorded] | None = None,
    ) -> None:
        self._rows = _Rows(num_rows, device)
        # Allowed tokens, a bit each, on their way from the host to the device.
        shape = (num_rows, -(-vocab_size // 32))
        on_gpu = device.type == "cuda"
        self._words = torch.full(shape, -1, dtype=torch.int32, pin_memory=on_gpu)
        self._masks = torch.full(shape, -1, dtype=torch.int32, device=device)
        # Beside the forward pass whose logits they are for.
        self._sending = torch.cuda.Stream(device) if on_gpu else None  # type: ignore[no-untyped-call]
        self._record = record
        self._recorded: dict[tuple[int, _Kind], Recorded] = {}

    @torch.inference_mode()
    def draw(
        self, logits: Logits, requests: Sequence[Request]
    ) -> tuple[Tensor, dict[str, TokenLogprobs]]:
        """Tokens int64 [num_requests] and, where asked, log-probabilities by request id.

        As `sample`; a grammar that breaks is noted in its request.
        """
        is_masked = self._fill_masks(requests)  # while a GPU still works on the logits
        asking = [i for i, request in enumerate(requests) if request.params.logprobs is not None]
        plain = logits.values[asking] if asking else None  # a copy: sampling changes the logits
        drawn = self.sample(logits, requests, is_masked=is_masked)
        if plain is None:
            return drawn, {}
        num_top = [requests[i].params.logprobs or 0 for i in asking]
        rows = logprobs_of(plain, drawn[asking].tolist(), num_top)
        return drawn, {requests[i].request_id: row for i, row in zip(asking, rows, strict=True)}

    @torch.inference_mode()
    def sample(
        self,
        logits: Logits,
        requests: Sequence[Request],
        *,
        is_masked: bool = False,
    ) -> Tensor:
        """Draw one token a request, from a row of logits each: int64 [num_requests].

        Order: logit bias and the ban of early stops, penalties, the grammars' masks if the draw
        `is_masked`, then `ops.sample`. The logits are changed; the next draw from as many logits
        in place overwrites the tokens. Nothing in here waits for the device.
        """
        num_rows = len(requests)
        own = logits.values[:num_rows]
        if not all(request.is_plain for request in requests):
            _apply_bias(own, requests)
            _apply_penalties(own, requests)
        kind = self._kind(requests, is_masked=is_masked)
        if not kind.is_greedy:
            self._rows.place(requests)
        recorded = self._recording(logits.values, kind) if logits.in_place else None
        if is_masked:
            self._send_masks(num_rows)
        if recorded is None:
            return self._launch(own, kind)
        graph, tokens = recorded
        graph.replay()
        return tokens[:num_rows]

    def in_graph(self, requests: Sequence[Request]) -> GraphDraw:
        """How the graph of a decode step draws for these, from the logits as they are.

        It is to be launched next.
        """
        kind = self._kind(requests)
        if kind.is_greedy:
            return GREEDY
        self._rows.forget_places()
        return GraphDraw(kind, partial(self._advance, kind))

    def _kind(self, requests: Sequence[Request], *, is_masked: bool = False) -> _Kind:
        """The kind of a draw for these requests, whose settings are held from now on."""
        rows, greedy = self._rows, is_greedy(requests)
        if not greedy:
            rows.hold(requests)
        return _Kind(
            is_masked=is_masked,
            is_greedy=greedy,
            any_top_k=not greedy and rows.any_top_k,
            any_top_p=not greedy and rows.any_top_p,
        )

    def _advance(self, kind: _Kind, logits: Tensor, fields: Tensor, told: Tensor) -> None:
        # A token is drawn for the position behind the last one: that of a sequence's length.
        positions = fields[3, : len(logits)]
        tokens = ops.sample(logits, self._rows.first(len(logits), kind, positions))
        ops.advance_drawn(tokens, fields, told)

    def _recording(self, logits: Tensor, kind: _Kind) -> Recorded | None:
        if self._record is None:
            return None
        key = (len(logits), kind)
        if key not in self._recorded:
            # A recording runs the launches once: the logits are needed, and the positions.
            self._masks.fill_(-1)
            self._recorded[key] = self._record(lambda: self._launch(logits, kind))
            if not kind.is_greedy:
                self._rows.positions.sub_(1)
            if self._sending is not None:
                self._sending.wait_stream(torch.cuda.current_stream())
        return self._recorded[key]

    def _send_masks(self, num_rows: int) -> None:
        with torch.cuda.stream(self._sending):  # None is the present one
            self._masks[:num_rows].copy_(self._words[:num_rows], non_blocking=True)
        if self._sending is not None:
            torch.cuda.current_stream().wait_stream(self._sending)

    def _launch(self, logits: Tensor, kind: _Kind) -> Tensor:
        if kind.is_masked:
            ops.apply_masks(logits, self._masks[: len(logits)])
        if kind.is_greedy:
            return ops.argmax(logits)[1]
        positions = self._rows.positions
        tokens = ops.sample(logits, self._rows.first(len(logits), kind, positions[: len(logits)]))
        positions.add_(1)
        return tokens

    def _fill_masks(self, requests: Sequence[Request]) -> bool:
        """Write the tokens allowed in each row into `_words`; whether any request has a grammar."""
        grammars = {
            row: request.grammar
            for row, request in enumerate(requests)
            if request.grammar is not None and request.finish_reason is None
        }
        if not grammars:
            return False
        # Read by a copy that is done: the tokens it led to have been read before these are asked.
        words = self._words.numpy()
        for row in range(len(requests)):
            if row not in grammars:
                words[row] = -1
        kind = type(next(iter(grammars.values())))
        for row, error in kind.fill_masks(grammars, words).items():
            requests[row].grammar_error = error
        return True


class _Rows:
    """The settings of a call's rows, in buffers on the device."""

    def __init__(self, num_rows: int, device: torch.device) -> None:
        # Whose settings they are, and whose positions: each of those draws a token a call for as
        # long as they stay together.
        self._requests: list[Request] = []
        self._placed: list[Request] = []
        self._seeds = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self._strengths = torch.zeros((3, num_rows), device=device)
        self._top_k = torch.zeros(num_rows, dtype=torch.int32, device=device)
        self.positions = torch.zeros(num_rows, dtype=torch.int64, device=device)
        self.any_top_k = self.any_top_p = False

    def place(self, requests: Sequence[Request]) -> None:
        """Hold the positions of the tokens to be drawn; after each draw, all must go on by one."""
        if self._placed != requests:
            self._placed = list(requests)
            self._fill(self.positions, [one.num_tokens for one in requests])

    def forget_places(self) -> None:
        """Tokens are drawn whose positions are not these."""
        self._placed = []

    def hold(self, requests: Sequence[Request]) -> None:
        """Hold the settings of these requests."""
        if self._requests == requests:
            return
        self._requests = list(requests)
        params = [request.params for request in requests]
        self.any_top_k = any(p.top_k > 0 for p in params)
        self.any_top_p = any(p.top_p < 1 for p in params)
        strengths = [
            [p.temperature for p in params],
            [p.top_p for p in params],
            [p.min_p for p in params],
        ]
        self._fill(self._seeds, [one.seed for one in requests])
        self._fill(self._strengths, strengths)
        self._fill(self._top_k, [max(p.top_k, 0) for p in params])
        # Rows of padding are greedy: the cheapest draw, and no search that none of these asks for.
        self._strengths[0, len(requests) :] = 0.0

    @staticmethod
    def _fill(held: Tensor, values: Sequence[float] | Sequence[Sequence[float]]) -> None:
        sent = upload(values, held.dtype, held.device)
        held[..., : sent.shape[-1]].copy_(sent)

    def first(self, num_rows: int, kind: _Kind, positions: Tensor) -> ops.SamplingRows:
        """The first rows, that draw for these positions."""
        temperature, top_p, min_p = self._strengths[:, :num_rows]
        return ops.SamplingRows(
            temperature=temperature,
            top_k=self._top_k[:num_rows],
            top_p=top_p,
            min_p=min_p,
            seeds=self._seeds[:num_rows],
            positions=positions,
            any_top_k=kind.any_top_k,
            any_top_p=kind.any_top_p,
        )


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
