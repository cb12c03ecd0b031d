"""How rows are split over programs."""

from lite_llama.kernel_lib.rows import ceil_div

# As argmax has them: values a piece of a row, and pieces whose best are held in registers.
BLOCK, _MAX_PIECES = 2048, 16384
MAX_VOCAB = BLOCK * _MAX_PIECES


def num_pieces(vocab: int) -> int:
    """Programs that look for the best of a row of so many logits."""
    return ceil_div(vocab, BLOCK)
