"""Who owns which block of the KV cache, and which blocks hold a prefix worth keeping.

Plain Python, no tensors. A block is in exactly one of three states, so that always
num_free + num_cached + num_used = num_blocks:

    free    holds nothing of use
    cached  holds a full, known piece of some prompt and belongs to no request (evictable)
    used    belongs to one or more requests (reference counted)
"""

import hashlib
import struct
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import chain


@dataclass(frozen=True)
class BlockKey:
    """What a full block holds: its tokens, and everything before them by a SHA-256 chain."""

    digest: bytes
    token_ids: tuple[int, ...]


@dataclass
class _Block:
    num_owners: int = 0
    key: BlockKey | None = None


@dataclass
class PrefixStats:
    """Tokens asked of the prefix cache, and tokens it had."""

    num_queried_tokens: int = 0
    num_hit_tokens: int = 0


def block_key(parent: BlockKey | None, token_ids: Sequence[int], salt: str) -> BlockKey:
    """Key of a full block behind `parent`; `salt` keeps the caches of strangers apart."""
    digest = hashlib.sha256(parent.digest if parent else b"lite_llama" + salt.encode())
    digest.update(struct.pack(f"<{len(token_ids)}q", *token_ids))
    return BlockKey(digest.digest(), tuple(token_ids))


@dataclass
class BlockPool:
    """Hands out blocks, takes them back, and finds cached prefixes."""

    num_blocks: int
    block_size: int
    prefix_caching: bool = True
    stats: PrefixStats = field(default_factory=PrefixStats)

    def __post_init__(self) -> None:
        self._blocks = [_Block() for _ in range(self.num_blocks)]
        self._free = list(range(self.num_blocks - 1, -1, -1))
        # Least recently released first; the first is the next to be evicted.
        self._cached: OrderedDict[int, None] = OrderedDict()
        self._by_digest: dict[bytes, int] = {}

    @property
    def num_free(self) -> int:
        """Blocks that hold nothing of use."""
        return len(self._free)

    @property
    def num_cached(self) -> int:
        """Blocks that nobody owns and that hold a known prefix."""
        return len(self._cached)

    @property
    def num_used(self) -> int:
        """Blocks with an owner, counted from the blocks themselves."""
        return sum(1 for block in self._blocks if block.num_owners)

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` can hand out now."""
        return self.num_free + self.num_cached

    def allocate(self, count: int) -> list[int]:
        """`count` blocks with one owner each. The caller has checked `num_available`."""
        return [self._take() for _ in range(count)]

    def release(self, blocks: Sequence[int]) -> None:
        """Give up one ownership of each block; known contents stay cached, last block first to go.

        The blocks of a request are released from its end, so that of a cached prefix the tail is
        evicted before the head it depends on.
        """
        for index in reversed(blocks):
            block = self._blocks[index]
            if block.num_owners <= 0:
                raise AssertionError(f"block {index} released without an owner")
            block.num_owners -= 1
            if block.num_owners == 0:
                if block.key is None:
                    self._free.append(index)
                else:
                    self._cached[index] = None

    def match(
        self, token_ids: Sequence[int], salt: str, known_keys: Sequence[BlockKey] = ()
    ) -> tuple[list[int], list[BlockKey]]:
        """Own the longest cached prefix of `token_ids`: (blocks, their keys), full blocks only.

        `known_keys` are those of its first blocks, found before; they are not hashed again.
        """
        blocks: list[int] = []
        keys: list[BlockKey] = []
        if not self.prefix_caching:
            return blocks, keys
        parent: BlockKey | None = None
        for number in range(len(token_ids) // self.block_size):
            if number < len(known_keys):
                parent = known_keys[number]
            else:
                start = number * self.block_size
                parent = block_key(parent, token_ids[start : start + self.block_size], salt)
            index = self._by_digest.get(parent.digest)
            # The tokens themselves are compared too: a digest is not taken on trust.
            if index is None or self._blocks[index].key != parent:
                break
            self._own(index)
            blocks.append(index)
            keys.append(parent)
        return blocks, keys

    def count_query(self, num_queried_tokens: int, num_hit_tokens: int) -> None:
        """Add one admitted request to the prefix cache's statistics."""
        self.stats.num_queried_tokens += num_queried_tokens
        self.stats.num_hit_tokens += num_hit_tokens

    def remember(self, index: int, key: BlockKey) -> None:
        """Note that an owned block is full and holds `key`; the first block of a key is kept."""
        if self.prefix_caching and key.digest not in self._by_digest:
            self._blocks[index].key = key
            self._by_digest[key.digest] = index

    def check(self) -> None:
        """Raise AssertionError if the books do not balance."""
        total = self.num_free + self.num_cached + self.num_used
        if total != self.num_blocks:
            raise AssertionError(f"{total} blocks accounted for, expected {self.num_blocks}")
        for index in chain(self._free, self._cached):
            if self._blocks[index].num_owners:
                raise AssertionError(f"block {index} is owned and handed out at once")

    def _take(self) -> int:
        if self._free:
            index = self._free.pop()
        else:
            index, _ = self._cached.popitem(last=False)
            key = self._blocks[index].key
            if key is not None:
                del self._by_digest[key.digest]
        self._blocks[index] = _Block(num_owners=1)
        return index

    def _own(self, index: int) -> None:
        block = self._blocks[index]
        if block.num_owners == 0:
            del self._cached[index]
        block.num_owners += 1
