"""Read many mutants of a small GGUF file: `fuzz_gguf.py DIRECTORY COUNT`, prints a JSON report.

A process of its own: its peak memory is the reader's, a mutant that takes 5 s kills it, and any
exception but ModelFileError ends it with a traceback and the seed.
"""

import json
import random
import resource
import signal
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))

from lite_llama.checkpoint.gguf import read_gguf
from lite_llama.errors import ModelFileError
from tests.checkpoint import gguf_writer as w

EDGES = [0, 1, 2, 3, 7, 8, 9, 31, 32, 255, 2**16, 2**31, 2**32 - 1, 2**32, 2**62, 2**63, 2**64 - 1]


def mutate(data: bytes, header_bytes: int, rng: random.Random) -> bytes:
    mutant = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 4])):
        position = rng.randrange(min(header_bytes, len(mutant)))
        kind = rng.randrange(6)
        if kind == 0:
            mutant[position] ^= 1 << rng.randrange(8)
        elif kind == 1:
            mutant[position] = rng.randrange(256)
        elif kind == 2:
            mutant[position : position + 8] = w.u64(rng.choice(EDGES))
        elif kind == 3:
            mutant[position : position + 4] = w.u32(rng.choice(EDGES) & 0xFFFFFFFF)
        elif kind == 4:
            del mutant[position : position + rng.randrange(1, 16)]
        else:
            other = rng.randrange(header_bytes)
            mutant[position:position] = data[other : other + rng.randrange(1, 32)]
    if rng.random() < 0.1:
        del mutant[rng.randrange(len(mutant)) :]
    return bytes(mutant)


def main() -> None:
    directory, count = Path(sys.argv[1]), int(sys.argv[2])
    data = w.small_model(
        w.u32_key("general.alignment", 32),
        w.u32_key("tokenizer.ggml.bos_token_id", 1),
        w.array_key("merges", w.STRING, [w.string("a b"), w.string("c d")]),
        w.array_key("bools", w.BOOL, [b"\0", b"\1"]),
    )
    path = directory / "mutant.gguf"
    path.write_bytes(data)
    read_gguf(path)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    report = {"refused": 0, "accepted": 0}
    for seed in range(count):
        path.write_bytes(mutate(data, len(data) - 96, random.Random(seed)) or b"G")
        signal.alarm(5)
        try:
            _, tensors = read_gguf(path)
            for tensor in tensors.values():
                tensor.data.sum()  # touches every byte of the view
            report["accepted"] += 1
        except ModelFileError as error:
            if "\n" in str(error):
                raise AssertionError(f"seed {seed}: {error}") from error
            report["refused"] += 1
        except Exception:
            print(f"seed {seed}", file=sys.stderr)
            raise
        signal.alarm(0)
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    print(json.dumps({**report, "grown_mb": grown / 1024}))


main()
