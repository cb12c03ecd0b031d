"""The rungs of the ladder compute the same step, and differ in what they say they differ in."""

from dataclasses import fields, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from lite_llama.bench import ladder, report
from lite_llama.cache.kv_cache import KVCache
from lite_llama.engine.engine import Engine
from lite_llama.models import decode_chain
from lite_llama.models.decoder import Decoder
from lite_llama.models.loader import random_decoder
from tests.bench.test_report import line
from tests.models.test_decode_chain import BASE, BLOCK_SIZE, EXACT, _batch


@pytest.mark.parametrize("attention", ["standard", "flash"])
@pytest.mark.parametrize(
    "changes",
    [{}, {"qkv_bias": True, "o_bias": True}, {"qk_norm": True}, {"tied_head": True, "window": 5}],
    ids=str,
)
def test_plain_torch_gives_the_decoders_logits_and_cache(
    changes: dict[str, Any], attention: str
) -> None:
    torch.manual_seed(1)
    config = replace(BASE, **changes)
    decoder = random_decoder(config, EXACT, device=torch.device("cpu"), num_positions=64)
    parts = {field.name: getattr(decoder, field.name) for field in fields(Decoder)}
    plain = ladder.TorchDecoder(**parts, flash=attention == "flash")
    step = _batch([5], 9, decodes=True)
    shape = (2, 4, BLOCK_SIZE, 2, 16)
    caches = [KVCache.allocate(shape, torch.float32, torch.device("cpu")) for _ in range(2)]
    for pair in zip(*(cache.layers for cache in caches), strict=True):
        for kept in ("k", "v"):
            values = torch.randn(shape[1:])
            for layer in pair:
                getattr(layer, kept).copy_(values)
    want = decoder.forward(step, caches[0])
    torch.testing.assert_close(plain.forward(step, caches[1]), want, rtol=1e-5, atol=1e-6)
    for ours, theirs in zip(caches[1].layers, caches[0].layers, strict=True):
        torch.testing.assert_close(ours.k, theirs.k)
        torch.testing.assert_close(ours.v, theirs.v)
    prompt = _batch([3, 1, 4], 0, decodes=False)
    torch.testing.assert_close(plain.forward(prompt, caches[1]), decoder.forward(prompt, caches[0]))


def test_recorded_rungs_add_one_thing_each(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(decode_chain, "fits", lambda *_: True)
    decoder = random_decoder(BASE, EXACT, device=torch.device("cpu"), num_positions=64)
    plan = SimpleNamespace(
        device=torch.device("cpu"), max_blocks_per_seq=4, block_size=16, precision=EXACT
    )
    base = SimpleNamespace(runner=SimpleNamespace(decoder=decoder), plan=plan, model=BASE)
    found = ladder._chains(cast("Engine", base), 1)
    assert list(found) == ["+ CUDA graph", "+ fusion", "+ PDL", "+ preload, prefetch, overlap"]
    assert "lite-llama tune" in capsys.readouterr().out
    graph, fusion, pdl, early = found.values()
    assert graph is None
    assert fusion is not None
    assert pdl is not None
    assert early is not None
    assert [chain.o.overlap for chain in (fusion, pdl, early)] == [-1.0, 0.0, 0.0]
    assert [chain.attention_overlap for chain in (fusion, pdl, early)] == [-1.0, 0.0, 0.0]
    assert [chain.o.preload for chain in (pdl, early)] == [False, True]
    assert fusion.attention == pdl.attention == early.attention is not None


def test_the_ladders_table_tells_each_rungs_gain_in_their_order() -> None:
    rungs = {"2 Triton kernels": 4000.0, "1 torch": 8000.0, "3 + CUDA graph": 3999.95}
    lines = [line(name, us, bench="ladder", case="m b1") for name, us in rungs.items()]
    rows = report.ladder_table(lines).splitlines()[2:]
    assert rows == [
        "| m b1 | 1 torch | 8.000 |  | 1.00 |",
        "| m b1 | 2 Triton kernels | 4.000 |  | 2.00 |",
        "| m b1 | 3 + CUDA graph | 4.000 |  | 1.00 (tie) |",
    ]
