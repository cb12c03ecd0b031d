"""Where the program of an elementwise kernel finds its piece of a row."""

import triton
import triton.language as tl


@triton.jit
def piece_of_row(PIECES: tl.constexpr, BLOCK: tl.constexpr):
    """(row, its first column), int64, of a program that takes BLOCK columns.

    PIECES: programs of a row, a constant, as a division costs a small kernel 5 % of its time; 0:
    there is a single row.
    """
    row, piece = tl.zeros([], tl.int64), tl.program_id(0)
    if PIECES > 0:
        row, piece = (piece // PIECES).to(tl.int64), piece % PIECES
    return row, piece.to(tl.int64) * BLOCK
