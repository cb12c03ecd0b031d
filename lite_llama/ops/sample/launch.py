"""How a row of logits is cut into pieces and groups."""

from dataclasses import dataclass

from lite_llama.kernel_lib.rows import ceil_div, next_power_of_2

# 256 threads with 64 bytes of float32 each; 8 rows of 128256 make 256 programs.
_BLOCK = 4096
# A row's partial results are held in one program's registers.
_MAX_SPLITS = 1024
MAX_VOCAB = _BLOCK * _MAX_SPLITS
# One program holds a row's group maxima in registers, then the tokens of its best groups.
_MIN_GROUP, _MAX_GROUPS_OF_ROW, _MAX_TOKENS = 16, 8192, 16384
# What a small top_k, or top_p alone, looks at first: sums over fewer tokens.
_FEW_GROUPS = 256


@dataclass(frozen=True)
class SampleLaunch:
    """A row is cut into `splits` pieces of `block` columns, and into `groups` of `group` columns,
    of which the best `best_groups` are looked at closely, and `few_groups` before them;
    `*_block` pad to powers of two."""

    splits: int
    split_block: int
    block: int
    num_warps: int
    group: int
    groups: int
    groups_block: int
    best_groups: int
    few_groups: int


def choose_launch(vocab: int) -> SampleLaunch:
    """Depends on the vocabulary alone: a row draws the same token in any batch."""
    block = min(max(next_power_of_2(vocab), 32), _BLOCK)
    splits = ceil_div(vocab, block)
    group = max(_MIN_GROUP, next_power_of_2(ceil_div(vocab, _MAX_GROUPS_OF_ROW)))
    groups = ceil_div(vocab, group)
    groups_block = next_power_of_2(groups)
    best_groups = min(groups_block, _MAX_TOKENS // group)
    return SampleLaunch(
        splits,
        next_power_of_2(splits),
        block,
        num_warps=max(1, block // 512),
        group=group,
        groups=groups,
        groups_block=groups_block,
        best_groups=best_groups,
        few_groups=min(best_groups, _FEW_GROUPS),
    )
