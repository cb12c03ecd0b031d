"""From logits to the next token, row by row, with a counter-based draw."""

from dataclasses import dataclass

import torch
from torch import Tensor

from lite_llama.errors import OperatorError
from lite_llama.kernel_lib.checks import (
    check,
    check_device,
    check_float_up_to_32,
    check_integer,
    check_rank,
    check_shape,
    check_unit_stride,
)
from lite_llama.ops.sample import reference
from lite_llama.ops.sample.launch import MAX_VOCAB


@dataclass(frozen=True)
class SamplingRows:
    """What the draw of each row depends on; all tensors [num_rows], on the logits' device.

    `any_top_k` and `any_top_p` let the host, which knows the requests, promise that no row cuts by
    top_k (all 0) or top_p (all 1): each saves the launches of a search. A row that does cut may
    then be drawn without it.
    """

    temperature: Tensor  # float32; 0 picks the largest logit
    top_k: Tensor  # int32; 0 keeps all
    top_p: Tensor  # float32 in (0, 1]
    min_p: Tensor  # float32 in [0, 1]
    seeds: Tensor  # int64
    positions: Tensor  # int64; the position of the token being drawn
    any_top_k: bool = True
    any_top_p: bool = True


_ROW_DTYPES = {
    "temperature": torch.float32,
    "top_k": torch.int32,
    "top_p": torch.float32,
    "min_p": torch.float32,
    "seeds": torch.int64,
    "positions": torch.int64,
}


def sample(logits: Tensor, rows: SamplingRows) -> Tensor:
    """Draw one token id a row: logits [num_rows, vocab <= 2²²] -> int64 [num_rows].

    Order: divide by temperature; keep logits >= the top_k-th largest; of what is left, keep the
    smallest set of most likely tokens whose probability reaches top_p, and every token as likely
    as its last; keep tokens of at least min_p times the largest probability. Then invert the
    cumulative distribution, in vocabulary order, at u = philox(seed, position): the draw depends
    on the row alone, not on the batch. Tokens at −inf are never drawn. `logits` is not changed.
    """
    check_float_up_to_32("logits", logits)
    _check_vocab(logits)
    tensors = {name: getattr(rows, name) for name in _ROW_DTYPES}
    for name, tensor in tensors.items():
        check_shape(name, tensor, (logits.shape[0],))
        check_device(name, tensor, "logits", logits)
        expected = _ROW_DTYPES[name]
        if tensor.dtype != expected:
            raise OperatorError(f"{name} has dtype {tensor.dtype}, expected {expected}")
        check_unit_stride(name, tensor)
    if logits.shape[0] == 0:
        return torch.empty(0, dtype=torch.int64, device=logits.device)
    if logits.is_cuda:
        from lite_llama.ops.sample import kernel

        return kernel.sample(logits, **tensors, any_top_k=rows.any_top_k, any_top_p=rows.any_top_p)
    return reference.sample(logits, **tensors)


def apply_penalties(
    logits: Tensor,
    prompt_mask: Tensor,
    output_counts: Tensor,
    repetition: Tensor,
    presence: Tensor,
    frequency: Tensor,
) -> None:
    """Penalise seen tokens, in place, as vLLM and the OpenAI API define it.

    logits float32 [num_rows, vocab]; prompt_mask bool and output_counts int32 [num_rows, vocab];
    repetition, presence, frequency float32 [num_rows]. A token seen in prompt or output: logit
    divided by `repetition` if positive, else multiplied. A token seen in the output: minus
    frequency · count, minus presence.
    """
    check(
        logits.dtype == torch.float32, lambda: f"logits has dtype {logits.dtype}, expected float32"
    )
    _check_vocab(logits)
    check(
        prompt_mask.dtype == torch.bool,
        lambda: f"prompt_mask has dtype {prompt_mask.dtype}, expected bool",
    )
    check_integer("output_counts", output_counts)
    for name, x in (("logits", logits), ("prompt_mask", prompt_mask), ("counts", output_counts)):
        check_shape(name, x, tuple(logits.shape))
        check_unit_stride(name, x)
        check_device(name, x, "logits", logits)
    strengths = {"repetition": repetition, "presence": presence, "frequency": frequency}
    for name, x in strengths.items():
        check_shape(name, x, (logits.shape[0],))
        check_device(name, x, "logits", logits)
    if logits.shape[0] == 0:
        return
    if logits.is_cuda:
        from lite_llama.ops.sample import kernel

        kernel.apply_penalties(logits, prompt_mask, output_counts, **strengths)
        return
    reference.apply_penalties(logits, prompt_mask, output_counts, **strengths)


def apply_masks(logits: Tensor, words: Tensor) -> None:
    """Set the logits of tokens that a mask leaves out to −inf, in place.

    logits float32 [num_rows, vocab]; words int32 [num_rows, ceil(vocab / 32)]: token i is allowed
    if bit i % 32 of word i // 32 is set.
    """
    check(
        logits.dtype == torch.float32, lambda: f"logits has dtype {logits.dtype}, expected float32"
    )
    _check_vocab(logits)
    check(words.dtype == torch.int32, lambda: f"words has dtype {words.dtype}, expected int32")
    check_shape("words", words, (logits.shape[0], -(-logits.shape[1] // 32)))
    check_device("words", words, "logits", logits)
    for name, x in (("logits", logits), ("words", words)):
        check_unit_stride(name, x)
    if logits.shape[0] == 0:
        return
    if logits.is_cuda:
        from lite_llama.ops.sample import kernel

        kernel.apply_masks(logits, words)
        return
    reference.apply_masks(logits, words)


def token_logprobs(logits: Tensor, tokens: Tensor) -> Tensor:
    """log softmax(logits) at `tokens`: logits [num_rows, vocab], tokens int64 [num_rows, m] ->
    float32 [num_rows, m]. Tokens must lie in [0, vocab); they are not checked on the device.
    """
    check_float_up_to_32("logits", logits)
    _check_vocab(logits)
    check_rank("tokens", tokens, 2)
    check_integer("tokens", tokens)
    check_shape("tokens", tokens, (logits.shape[0], tokens.shape[1]))
    check_device("tokens", tokens, "logits", logits)
    if tokens.numel() == 0:
        return torch.empty(tuple(tokens.shape), device=logits.device)
    if logits.is_cuda:
        from lite_llama.ops.sample import kernel

        return kernel.token_logprobs(logits, tokens)
    return reference.token_logprobs(logits, tokens)


def _check_vocab(logits: Tensor) -> None:
    check_rank("logits", logits, 2)
    check(
        0 < logits.shape[1] <= MAX_VOCAB,
        lambda: f"logits has shape {tuple(logits.shape)}, expected [num_rows, 1..{MAX_VOCAB}]",
    )
