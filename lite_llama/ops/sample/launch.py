"""How a row of logits is split over programs, and the steps of the search for its thresholds."""

from dataclasses import dataclass

from lite_llama.kernel_lib.rows import ceil_div, next_power_of_2

# 256 threads with 64 bytes of float32 each; 8 rows of 128256 make 256 programs.
_BLOCK = 4096
# A row's partial results are held in one program's registers.
_MAX_SPLITS = 1024
MAX_VOCAB = _BLOCK * _MAX_SPLITS
# A pass compares with 16 thresholds and so settles 4 of a key's 32 bits. 5 bits a pass would save a
# launch of each search and double the arithmetic, which already takes as long as the reads.
BITS_PER_PASS = 4
NUM_PASSES = 32 // BITS_PER_PASS


@dataclass(frozen=True)
class SampleLaunch:
    """A row is cut into `splits` pieces of `block` columns; `split_block` pads splits."""

    splits: int
    split_block: int
    block: int
    num_warps: int


def choose_launch(vocab: int) -> SampleLaunch:
    """Splits depend on the vocabulary alone: a row draws the same token in any batch."""
    block = min(next_power_of_2(vocab), _BLOCK)
    splits = ceil_div(vocab, block)
    return SampleLaunch(splits, next_power_of_2(splits), block, num_warps=max(1, block // 512))
