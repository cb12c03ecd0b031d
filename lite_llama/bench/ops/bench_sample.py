"""sample against the chain of sort, softmax, cumulative sum and draw: one read of the logits."""

from collections.abc import Callable

import torch
from torch import Tensor

from lite_llama.bench.harness import Case
from lite_llama.ops import SamplingRows, apply_masks, apply_penalties, sample, token_logprobs

_VOCAB = 128256


def cases(device: torch.device, dtype: torch.dtype) -> list[Case]:
    del dtype  # logits are float32
    if device.type != "cuda":
        return [
            _draw(device, 2, 3000, 50, 0.9),
            _penalise(device, 2, 3000),
            _masks(device, 2, 3000),
        ]
    return [
        *(_draw(device, rows, _VOCAB, 50, 0.9) for rows in (1, 8, 64, 256)),
        _draw(device, 8, _VOCAB, 0, 0.9),
        _draw(device, 8, _VOCAB, 0, 1.0),
        _penalise(device, 64, _VOCAB),
        _masks(device, 64, _VOCAB),
        _logprobs(device, 64, _VOCAB),
    ]


def _draw(device: torch.device, rows: int, vocab: int, top_k: int, top_p: float) -> Case:
    settings = SamplingRows(
        temperature=torch.full((rows,), 0.8, device=device),
        top_k=torch.full((rows,), top_k, dtype=torch.int32, device=device),
        top_p=torch.full((rows,), top_p, device=device),
        min_p=torch.zeros(rows, device=device),
        seeds=torch.arange(rows, device=device),
        positions=torch.arange(rows, device=device),
        any_top_k=top_k > 0,
        any_top_p=top_p < 1,
    )

    def plain(logits: Tensor) -> Tensor:
        scaled = logits / 0.8
        if not top_k and top_p == 1.0:
            return _pick(torch.softmax(scaled, dim=-1))
        ordered, order = scaled.sort(dim=-1, descending=True)
        if top_k:
            ordered = ordered.masked_fill(ordered < ordered[:, top_k - 1, None], float("-inf"))
        probs = torch.softmax(ordered, dim=-1)
        probs = probs.masked_fill(probs.cumsum(-1) - probs >= top_p, 0.0)
        return order.gather(1, _pick(probs)[:, None])[:, 0]

    def ours(logits: Tensor) -> Tensor:
        return sample(logits, settings)

    return Case(
        name=f"{rows}x{vocab} k{top_k} p{top_p:g}",
        dtype=torch.float32,
        make_inputs=_logits(device, rows, vocab),
        contenders={"torch": plain, "lite_llama": ours},
        num_bytes=rows * vocab * 4,
        limit=None,  # other random numbers
    )


def _pick(probs: Tensor) -> Tensor:
    # torch.multinomial's own method for one draw, without its checks (which synchronise).
    return (probs / torch.empty_like(probs).exponential_()).argmax(-1)


def _penalise(device: torch.device, rows: int, vocab: int) -> Case:
    prompt = torch.rand(rows, vocab, device=device) < 0.01
    counts = (torch.rand(rows, vocab, device=device) < 0.01).int()
    repetition, presence, frequency = (
        torch.full((rows,), value, device=device) for value in (1.1, 0.5, 0.1)
    )

    def plain(logits: Tensor) -> None:
        seen = prompt | (counts > 0)
        factor = torch.where(seen, repetition[:, None], 1.0)
        logits.copy_(torch.where(logits > 0, logits / factor, logits * factor))
        logits -= frequency[:, None] * counts
        logits -= presence[:, None] * (counts > 0)

    def ours(logits: Tensor) -> None:
        apply_penalties(logits, prompt, counts, repetition, presence, frequency)

    return Case(
        name=f"penalties {rows}x{vocab}",
        dtype=torch.float32,
        make_inputs=_logits(device, rows, vocab),
        contenders={"torch": plain, "lite_llama": ours},
        num_bytes=rows * vocab * (1 + 4),  # mask and counts; logits only where seen
        in_place=True,
    )


def _masks(device: torch.device, rows: int, vocab: int) -> Case:
    allowed = torch.rand(rows, vocab, device=device) < 0.01
    shifts = torch.arange(32, device=device)
    padded = torch.nn.functional.pad(allowed, (0, -vocab % 32)).view(rows, -1, 32).long()
    words = (padded << shifts).sum(-1).int()

    def plain(logits: Tensor) -> None:
        bits = ((words[:, :, None] >> shifts) & 1).flatten(1)[:, :vocab]
        logits.masked_fill_(bits == 0, float("-inf"))

    return Case(
        name=f"masks {rows}x{vocab}",
        dtype=torch.float32,
        make_inputs=_logits(device, rows, vocab),
        contenders={"torch": plain, "lite_llama": lambda logits: apply_masks(logits, words)},
        num_bytes=rows * vocab * 4 + words.numel() * 4,
        in_place=True,
    )


def _logprobs(device: torch.device, rows: int, vocab: int) -> Case:
    tokens = torch.randint(0, vocab, (rows, 20), device=device)
    return Case(
        name=f"logprobs {rows}x{vocab}",
        dtype=torch.float32,
        make_inputs=_logits(device, rows, vocab),
        contenders={
            "torch": lambda logits: torch.log_softmax(logits, dim=-1).gather(1, tokens),
            "lite_llama": lambda logits: token_logprobs(logits, tokens),
        },
        num_bytes=rows * vocab * 4,
    )


def _logits(device: torch.device, rows: int, vocab: int) -> Callable[[], tuple[Tensor, ...]]:
    return lambda: (torch.randn(rows, vocab, device=device) * 3,)
