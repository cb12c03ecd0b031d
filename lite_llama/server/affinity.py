"""Which replica a request goes to: the one that has its prefix, unless that one is far behind.

Rendezvous hashing (Thaler, Ravishankar 1996): each pair of key and replica has a score, and the
highest wins. Routers agree without talking to each other, and a replica that comes or goes moves
only the keys that it wins.
"""

import hashlib
from collections.abc import Iterator, Mapping
from typing import Any

# About 256 tokens, so 16 KV blocks: what is shared beyond that is decided by load.
PREFIX_CHARS = 1024
# What stands before the conversation in a rendered prompt, by the names of all four routes.
_HEAD_FIELDS = ("tools", "system", "instructions")


def prefix_key(body: Mapping[str, Any], salt: str) -> bytes:
    """The name of a request's prefix, 32 bytes; requests of one name share KV blocks.

    It covers what comes before the conversation, and the messages up to the first of the user, so
    that each turn of a conversation has the same name. `salt` keeps API keys apart, as it does in
    the prefix cache. The body need not be valid: the replica checks it.
    """
    head = [repr(body.get(name)) for name in (*_HEAD_FIELDS, "cache_salt")]
    text = "".join(_opening(body))[:PREFIX_CHARS]
    return hashlib.sha256("\0".join((salt, *head, text)).encode("utf-8", "replace")).digest()


def _opening(body: Mapping[str, Any]) -> Iterator[str]:
    """The prompt, or the messages up to the first of the user."""
    for name in ("prompt", "input", "messages"):
        given = body.get(name)
        if not isinstance(given, list):
            yield "" if given is None else str(given)
            continue
        for entry in given[:PREFIX_CHARS]:
            yield f"{entry}\0"
            if isinstance(entry, dict) and entry.get("role") == "user":
                break


def rank(key: bytes, loads: Mapping[str, int], max_imbalance: int) -> list[str]:
    """All replicas, best first; `loads` are their requests.

    First the one that wins `key`, unless it has over `max_imbalance` requests more than the least
    loaded. Then by load; of equal loads, by score.
    """
    scores = {replica: _score(key, replica) for replica in loads}
    by_load = sorted(loads, key=lambda replica: (loads[replica], -scores[replica]))
    if not by_load:
        return []
    winner = max(loads, key=scores.__getitem__)
    if loads[winner] - loads[by_load[0]] > max_imbalance:
        return by_load
    return [winner, *(replica for replica in by_load if replica != winner)]


def _score(key: bytes, replica: str) -> int:
    digest = hashlib.blake2b(replica.encode(), key=key, digest_size=8).digest()
    return int.from_bytes(digest, "little")
