"""The tuner on a GPU: a small model, one site; and the engine that takes what was found."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from rich.console import Console

from lite_llama import EngineConfig, SamplingParams
from lite_llama.engine.config import resolve
from lite_llama.engine.engine import Engine
from lite_llama.kernel_lib import tuned
from lite_llama.kernel_lib.gpu import gpu_spec
from lite_llama.models import decode_chain
from lite_llama.models.chain_launches import (
    choose_launches,
    settle_attention,
    without_overlap,
)
from lite_llama.models.loader import Precision, random_decoder
from lite_llama.tuning import run
from lite_llama.tuning.measure import ChainMeter
from lite_llama.tuning.precompile import Compiler
from lite_llama.tuning.search import Rejected
from tests.models.test_decode_chain import BASE

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU: nothing to tune")

CONFIG = replace(BASE, vocab_size=1000, hidden_size=1024, intermediate_size=1024, max_positions=256)


@pytest.fixture
def engine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Engine:
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    torch.manual_seed(3)
    device = torch.device("cuda")
    precision = Precision(torch.bfloat16, torch.bfloat16)
    decoder = random_decoder(CONFIG, precision, device=device, num_positions=256)
    asked = EngineConfig(dtype="bfloat16", device="cuda", max_num_seqs=8, prefix_caching=False)
    return Engine(decoder, resolve(asked, CONFIG), 64, frozenset())


def test_a_search_writes_a_table_that_the_engine_takes_and_answers_as_before(
    engine: Engine,
) -> None:
    params = SamplingParams(temperature=0, max_tokens=8, ignore_eos=True)

    def tokens() -> list[int]:
        fresh = Engine(engine.runner.decoder, engine.plan, 64, frozenset())
        fresh.add("0", [3, 4, 5], params)
        drawn = []
        while fresh.has_requests:
            drawn += [output.token_id for output in fresh.step()]
        return drawn

    before = tokens()
    output = tuned.user_folder() / f"{gpu_spec(engine.plan.device).slug}.json"
    request = run.Request(batches=(2, 1), sites=("o",), context=64)
    run.tune(engine, request, output, Console(width=160))
    other, entry = tuned.read(output)
    assert (other.batch, entry.batch) == (2, 1)
    launches = decode_chain.engine_launches(engine.runner.decoder, 1)
    assert launches is not None
    assert launches.attention is not None  # spelled out by the table, left open by the defaults
    assert entry.measured["tuned"]["ms"] > 0
    # Rounding may part the tokens after a while, but not the first ones.
    assert tokens()[:2] == before[:2]
    output.unlink()
    assert decode_chain.engine_launches(engine.runner.decoder, 1) == choose_launches(
        CONFIG, 1, torch.bfloat16
    )
    assert tokens() == before


def test_modes_are_bitwise_equal_and_what_cannot_launch_is_refused(engine: Engine) -> None:
    start = decode_chain.engine_launches(engine.runner.decoder, 1)
    assert start is not None
    meter = ChainMeter(engine, 1, [64], {})
    meter.calibrate(start)
    assert meter(without_overlap(start), start, longer=True).ms > 0
    huge = replace(start, o=replace(start.o, num_warps=64))  # more threads than a program has
    with pytest.raises(Rejected):
        meter(huge, start, longer=False)
    assert meter(start, start, longer=False).ratio == pytest.approx(1.0, abs=0.2)
    gpu = gpu_spec(engine.plan.device)
    settled = settle_attention(huge, CONFIG, (1, torch.bfloat16, 256), gpu)
    with Compiler(CONFIG, engine.plan) as compiler:
        compiler.compile(1, [settled])
        assert settled in compiler.refused
