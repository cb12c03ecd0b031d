"""From logits to the next token, row by row, with a counter-based draw."""

from dataclasses import dataclass

from torch import Tensor

from lite_llama.kernel_lib.checks import check_float, check_rank, check_shape
from lite_llama.ops.sample import reference


@dataclass(frozen=True)
class SamplingRows:
    """What the draw of each row depends on; all tensors [num_rows], on the logits' device."""

    temperature: Tensor  # float32; 0 picks the largest logit
    top_k: Tensor  # int32; 0 keeps all
    top_p: Tensor  # float32 in (0, 1]
    min_p: Tensor  # float32 in [0, 1]
    seeds: Tensor  # int64
    positions: Tensor  # int64; the position of the token being drawn


def sample(logits: Tensor, rows: SamplingRows) -> Tensor:
    """Draw one token id a row: logits float32 [num_rows, vocab] -> int64 [num_rows].

    Order: divide by temperature; keep logits >= the top_k-th largest; of what is left, keep the
    smallest set of most likely tokens whose probability reaches top_p, and every token as likely
    as its last; keep tokens of at least min_p times the largest probability. Then invert the
    cumulative distribution, in vocabulary order, at u = philox(seed, position): the draw depends
    on the row alone, not on the batch. Tokens at −inf are never drawn. `logits` is not changed.
    """
    check_float("logits", logits)
    check_rank("logits", logits, 2)
    check_shape("temperature", rows.temperature, (logits.shape[0],))
    return reference.sample(
        logits, rows.temperature, rows.top_k, rows.top_p, rows.min_p, rows.seeds, rows.positions
    )


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
    check_rank("logits", logits, 2)
    check_shape("prompt_mask", prompt_mask, tuple(logits.shape))
    check_shape("output_counts", output_counts, tuple(logits.shape))
    reference.apply_penalties(logits, prompt_mask, output_counts, repetition, presence, frequency)
