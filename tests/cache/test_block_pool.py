"""The block pool: who owns what, what is found again, what is evicted first."""

import hashlib

import pytest

from lite_llama.cache import block_pool
from lite_llama.cache.block_pool import BlockKey, BlockPool, block_key

SIZE = 4


def pool(num_blocks: int = 8, *, prefix_caching: bool = True) -> BlockPool:
    return BlockPool(num_blocks, SIZE, prefix_caching)


def fill(target: BlockPool, tokens: list[int], salt: str = "") -> list[int]:
    """Own blocks that hold `tokens`, as a request that computed them does."""
    blocks = target.allocate(-(-len(tokens) // SIZE))
    parent: BlockKey | None = None
    for i in range(len(tokens) // SIZE):
        parent = block_key(parent, tokens[i * SIZE : (i + 1) * SIZE], salt)
        target.remember(blocks[i], parent)
    target.check()
    return blocks


def counts(target: BlockPool) -> tuple[int, int, int]:
    target.check()
    return target.num_free, target.num_cached, target.num_used


def test_every_block_is_handed_out_once() -> None:
    target = pool()
    assert sorted(target.allocate(8)) == list(range(8))
    assert counts(target) == (0, 0, 8)
    assert target.num_available == 0


def test_released_blocks_are_free_if_unknown_and_cached_if_known() -> None:
    target = pool()
    blocks = fill(target, list(range(10)))
    assert counts(target) == (5, 0, 3)
    target.release(blocks)
    assert counts(target) == (6, 2, 0)


def test_a_prefix_is_found_in_whole_blocks_only() -> None:
    target = pool()
    tokens = list(range(10))
    blocks = fill(target, tokens)
    target.release(blocks)
    assert target.match(tokens[:7], "")[0] == blocks[:1]
    assert target.match(tokens, "")[0] == blocks[:2]
    assert target.match([*tokens[:8], 99, 98, 97, 96], "")[0] == blocks[:2]
    assert target.match([99, *tokens[1:]], "")[0] == []
    # The second block alone is no prefix.
    assert target.match(tokens[4:8], "")[0] == []


def test_matched_blocks_have_an_owner_more() -> None:
    target = pool()
    tokens = list(range(8))
    first = fill(target, tokens)
    second, keys = target.match(tokens, "")
    assert second == first
    assert [key.token_ids for key in keys] == [(0, 1, 2, 3), (4, 5, 6, 7)]
    target.release(first)
    assert counts(target) == (6, 0, 2)
    target.release(second)
    assert counts(target) == (6, 2, 0)


def test_free_blocks_go_before_cached_ones() -> None:
    target = pool(4)
    blocks = fill(target, list(range(8)))
    target.release(blocks)
    assert set(target.allocate(2)).isdisjoint(blocks)
    assert target.num_cached == 2


def test_the_tail_of_a_prefix_is_evicted_before_its_head() -> None:
    target = pool(3)
    tokens = list(range(12))
    blocks = fill(target, tokens)
    target.release(blocks)
    for evicted in (blocks[2], blocks[1], blocks[0]):
        assert target.allocate(1) == [evicted]
    assert target.match(tokens, "")[0] == []


def test_the_least_recently_released_prefix_is_evicted_first() -> None:
    target = pool(4)
    old, new = [1] * SIZE, [2] * SIZE
    old_blocks, new_blocks = fill(target, old), fill(target, new)
    target.release(old_blocks)
    target.release(new_blocks)
    target.release(target.match(old, "")[0])  # used again: now the younger one
    target.allocate(2)
    assert target.allocate(1) == new_blocks
    assert target.match(new, "")[0] == []
    assert target.match(old, "")[0] == old_blocks


def test_an_evicted_block_is_forgotten() -> None:
    target = pool(1)
    target.release(fill(target, [1] * SIZE))
    blocks = fill(target, [2] * SIZE)
    assert target.match([1] * SIZE, "")[0] == []
    target.release(blocks)
    assert target.match([2] * SIZE, "")[0] == blocks
    target.check()


def test_an_evicted_prefix_can_be_cached_again() -> None:
    target = pool(1)
    for tokens in ([1] * SIZE, [2] * SIZE, [1] * SIZE):
        target.release(fill(target, tokens))
    assert counts(target) == (0, 1, 0)
    assert target.match([1] * SIZE, "")[0] == [0]


def test_of_two_blocks_with_one_content_the_first_is_kept() -> None:
    target = pool()
    first, second = fill(target, [1] * SIZE), fill(target, [1] * SIZE)
    assert target.match([1] * SIZE, "")[0] == first
    target.release(second)
    assert counts(target) == (7, 0, 1)  # the second copy is free, not cached


def test_a_salt_keeps_prefixes_apart() -> None:
    target = pool()
    tokens = [1] * SIZE
    blocks = fill(target, tokens, salt="alice")
    assert target.match(tokens, "bob")[0] == []
    assert target.match(tokens, "")[0] == []
    assert target.match(tokens, "alice")[0] == blocks


def test_a_hash_collision_is_no_match(monkeypatch: pytest.MonkeyPatch) -> None:
    class Constant:
        def __init__(self, _data: bytes) -> None:
            pass

        def update(self, _data: bytes) -> None:
            pass

        def digest(self) -> bytes:
            return b"same"

    monkeypatch.setattr(block_pool.hashlib, "sha256", Constant)
    assert block_key(None, [1] * SIZE, "").digest == block_key(None, [2] * SIZE, "").digest
    target = pool()
    blocks = fill(target, [1] * SIZE)
    assert target.match([2] * SIZE, "")[0] == []
    assert target.match([1] * SIZE, "")[0] == blocks
    fill(target, [2] * SIZE)
    assert target.match([2] * SIZE, "")[0] == []
    target.check()


def test_a_digest_covers_salt_parent_and_tokens() -> None:
    root = hashlib.sha256(b"lite_llamasalt" + b"".join(t.to_bytes(8, "little") for t in (1, 2)))
    first = block_key(None, [1, 2], "salt")
    assert first.digest == root.digest()
    second = block_key(first, [3, 4], "salt")
    assert second.digest != block_key(None, [3, 4], "salt").digest
    assert second.digest != block_key(first, [4, 3], "salt").digest


def test_without_prefix_caching_nothing_is_kept() -> None:
    target = pool(prefix_caching=False)
    blocks = fill(target, [1] * SIZE)
    assert target.match([1] * SIZE, "")[0] == []
    target.release(blocks)
    assert counts(target) == (8, 0, 0)


def test_queries_and_hits_are_counted() -> None:
    target = pool()
    target.count_query(10, 4)
    target.count_query(6, 0)
    assert (target.stats.num_queried_tokens, target.stats.num_hit_tokens) == (16, 4)


def test_a_release_without_owner_is_a_bug_that_shows() -> None:
    target = pool()
    blocks = target.allocate(1)
    target.release(blocks)
    with pytest.raises(AssertionError, match="without an owner"):
        target.release(blocks)


def test_check_finds_a_lost_block() -> None:
    target = pool()
    target._free.pop()
    with pytest.raises(AssertionError, match="7 blocks accounted for, expected 8"):
        target.check()
