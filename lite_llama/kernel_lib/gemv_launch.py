"""How a product of a few tokens with a weight matrix is launched."""

import math
from dataclasses import dataclass, replace

import torch

from lite_llama.kernel_lib.gpu import GpuSpec

MAX_TOKENS = 16
# In flight of one program's weights: a ring of 8 tiles of 16 x 512.
_RING_BYTES = 128 << 10


def token_columns(num_tokens: int) -> int:
    """Columns of the tensor cores' product of so many tokens: they take eight at a time."""
    return 8 if num_tokens <= 8 else 16


@dataclass(frozen=True)
class GemvLaunch:
    """How one product of the chain is launched.

    `block_n` rows (or row pairs) a program, `block_k` columns a tile, `num_warps` warps.
    `num_stages` 0: tiles pass through registers, a multiplication for each of one or two tokens;
    n > 0: through shared memory, n tiles in flight, to the tensor cores.
    `overlap` in [0, 1]: the next kernel may start when this share of a program's tiles is loaded;
    −1: a plain launch that no kernel overlaps. `preload`: the first tile is loaded before the wait;
    of those in shared memory all that are in flight, where `is_ring`.
    `prefetch` in [0, 1]: the share of a program's tiles asked into L2 before the wait.
    `groups` of rows a program, whole rows in registers, or of a ring: one is on its way while the
    one before it is multiplied, and all share what is made of x; the next kernel may start at once.
    """

    block_n: int
    block_k: int
    num_warps: int
    num_stages: int = 0
    overlap: float = -1.0
    preload: bool = True
    prefetch: float = 0.0
    groups: int = 1

    def num_groups(self, num_rows: int) -> int:
        """Groups that a program has of a weight of `num_rows` rows (or row pairs)."""
        fits = num_rows % (self.block_n * self.groups) == 0
        return self.groups if self.num_stages == 0 and fits else 1

    def is_ring(self, num_columns: int, dtype: torch.dtype, gpu: GpuSpec) -> bool:
        """Whether tiles are in shared memory before the wait (`decode_ring`, written in Gluon)."""
        return (
            self.num_stages > 0
            and self.preload
            and dtype.itemsize == 2
            and num_columns % self.block_k == 0
            and self.block_k in (32 * self.num_warps, 64 * self.num_warps)
            and gpu.compiles
        )

    def ring_groups(self, num_columns: int) -> int:
        """Groups that a program of a ring has: the ring begins anew with each."""
        tiles = num_columns // self.block_k
        return self.groups if tiles % min(self.num_stages, tiles) == 0 else 1

    def constants(self, num_columns: int, gpu: GpuSpec) -> dict[str, int]:
        """Constants of a kernel that calls `products` on a weight of `num_columns` columns.

        What would be a ring where that fits runs with smaller tiles here: a float32 takes twice
        the shared memory.
        """
        if self.num_stages > 0 and self.preload:
            smaller = replace(
                self, block_k=min(self.block_k, 128), num_warps=min(self.num_warps, 4),
                num_stages=min(self.num_stages, 4), preload=False,
            )  # fmt: skip
            return smaller.constants(num_columns, gpu)
        tiles = -(-num_columns // self.block_k)
        overlap = self.overlap >= 0 and gpu.has_pdl
        return {
            "BLOCK_N": self.block_n,
            "BLOCK_K": self.block_k,
            "STAGES": self.num_stages,
            "OVERLAP": overlap,
            "TRIGGER": int((tiles - 1) * max(self.overlap, 0.0)),
            "PRELOAD": overlap and self.preload,
            "PREFETCH": int(tiles * self.prefetch) if overlap else 0,
            "num_warps": self.num_warps,
            "launch_pdl": overlap,
        }


def choose_gemv(
    num_rows: int, num_columns: int, num_tokens: int, *, pairs: bool = False
) -> GemvLaunch:
    """Launch for a weight of `num_rows` rows (or row pairs) and `num_columns` columns; pure.

    Found on one H200 by search over whole chains of Llama-3.2-1B in bf16 (torch 2.11, Triton 3.6;
    0.813 -> 0.767 ms a step): one row and one warp where rows are few, so that every SM has one;
    two rows where there are many; eight for a head.
    """
    widest = 1 << (num_columns - 1).bit_length()
    if num_tokens > 1 and num_columns % 256 == 0:
        return _choose_ring(num_rows * (2 if pairs else 1), num_columns, num_tokens, pairs=pairs)
    if num_tokens > 2:
        # Found by `lite-llama tune` at 8 tokens: 1.53 -> 0.98 ms a step.
        if num_rows >= 65536:
            return GemvLaunch(64, min(widest, 128), 8, num_stages=4, preload=False)
        if num_columns >= 4 * num_rows:
            return GemvLaunch(16, min(widest, 256), 2, num_stages=6, preload=False)
        if num_rows <= 4096:
            return GemvLaunch(16, min(widest, 256), 2, num_stages=4, preload=False)
        return GemvLaunch(16, min(widest, 128), 2, num_stages=5, preload=False)
    if num_tokens == 2:
        # 1.02 -> 0.89 ms a step.
        if num_rows >= 65536:
            return GemvLaunch(8, min(widest, 512), 4)
        if num_columns >= 4 * num_rows:
            return GemvLaunch(1, min(widest, 1024), 2)
        return GemvLaunch(2, min(widest, 512), 1 if num_rows <= 4096 else 2)
    if num_rows >= 16384 and num_columns <= 1024 and num_columns % 512:
        # A head of 49152 x 576: 28.5 -> 14.5 µs.
        return GemvLaunch(32, 64, 1)
    if num_rows >= 65536:
        return GemvLaunch(8, min(widest, 512), 4)
    if num_columns >= 4 * num_rows:
        return GemvLaunch(2, min(widest, 1024), 2)
    if num_rows <= 4096:
        return GemvLaunch(1, min(widest, 1024), 1)
    return GemvLaunch(2, min(widest, 1024), 4)


def _choose_ring(num_rows: int, num_columns: int, num_tokens: int, *, pairs: bool) -> GemvLaunch:
    """Tiles of 16 rows; two programs an SM, which own as many groups of them as there are.

    Of 16 tokens one program: each reads all of x, and holds it.
    """
    # 8 tokens of Llama-3.2-1B on an H200: all products 0.81 -> 0.69 ms (docs/lab/decode_chain.md).
    block_k, num_warps = (512 if num_columns % 512 == 0 else 256), 8
    width = token_columns(num_tokens)
    if num_columns * width > 8 * 3072 and num_columns % 512 == 0 and (pairs or num_rows >= 65536):
        # x, which is normed, stays in the registers of more threads.
        block_k, num_warps = (1024 if num_columns % 2048 == 0 else 512), 16
    tiles, tile_bytes = num_columns // block_k, 16 * block_k * 2
    most = _RING_BYTES // tile_bytes
    num_programs = 264 if width == 8 else 132
    groups = 1 << round(math.log2(max(1.0, num_rows / (16 * num_programs))))
    rows = 16
    if width > 8 and groups == 2:  # what rotates or adds has no groups
        rows, groups, most = 32, 1, most // 2
    stages = min(tiles, most)
    if groups > 1:  # as deep as leaves a second program room, and the ring begins anew with a group
        most = most if num_warps > 8 else most * 3 // 4
        stages = max(depth for depth in range(1, most + 1) if tiles % depth == 0)
        if stages == 1 < tiles:
            groups, stages = 1, min(tiles, most)
    return GemvLaunch(
        rows // 2 if pairs else rows, block_k, num_warps, num_stages=stages, groups=groups
    )
