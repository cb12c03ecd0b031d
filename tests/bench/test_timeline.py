"""Stamps as one H200 took them in a Llama-3.2-1B, and what the timeline makes of them."""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from triton.runtime.interpreter import GridExecutor
from triton.runtime.jit import JITFunction

from lite_llama import ops
from lite_llama.bench import timeline
from lite_llama.bench.timeline import (
    BETWEEN,
    Site,
    chain_sites,
    draw,
    durations,
    group,
    split_steps,
    summary,
)
from lite_llama.cache.kv_cache import KVCache
from lite_llama.errors import ConfigError
from lite_llama.kernel_lib import gpu
from lite_llama.kernel_lib.gpu import H200
from lite_llama.models import decode_chain
from lite_llama.models.chain_launches import choose_launches, settle_attention
from lite_llama.models.config import ModelConfig
from lite_llama.models.families import find_family
from lite_llama.models.inputs import ForwardBatch
from lite_llama.models.loader import Precision, random_decoder
from lite_llama.models.presets import find_preset
from tests.models.chain_stress import kernel_modules

# One layer: programs, programs that stay; of those, least, 10 %, 90 % and most of the time at which
# they came to wait and of that at which they went on, in microseconds.
LAYER = {
    "qkv": (768, 768, (0.51, 1.02, 2.05, 2.30), (2.05, 2.05, 2.05, 2.30)),
    "attention": (256, 16, (7.17, 7.42, 7.42, 7.42), (7.42, 7.42, 7.42, 7.68)),
    "o": (2048, 2048, (7.68, 7.94, 8.70, 8.96), (13.31, 13.31, 13.31, 13.31)),
    "gate_up": (4096, 4096, (9.22, 14.85, 28.16, 29.95), (16.64, 16.64, 28.16, 29.95)),
    "down": (1024, 1024, (31.23, 31.49, 32.51, 32.77), (33.02, 33.02, 33.02, 33.02)),
}
LAYER_US = 39.42
# Made up: the head's waves, and the draw's two kernels.
END = {
    "head": (32064, 32064, (-6.0, 12.0, 104.0, 116.0), (0.0, 12.0, 104.0, 116.0)),
    "draw": (63, 63, (117.0, 118.0, 118.0, 118.3), (119.0, 119.0, 119.0, 119.3)),
    BETWEEN: (1, 1, (118.5, 118.5, 118.5, 118.5), (121.0, 121.0, 121.0, 121.0)),
}
STEP_US = 16 * LAYER_US + 135.0


BF16 = torch.bfloat16


def _config(preset: str) -> ModelConfig:
    metadata = find_preset(preset)
    return find_family("hf", metadata).read_hf_config(metadata)


def _sites(config: ModelConfig) -> list[Site]:
    launches = choose_launches(config, 1, torch.float32)  # in registers, as when it was measured
    launches = replace(
        launches,
        qkv=replace(launches.qkv, block_n=2),
        down=replace(launches.down, block_n=2),
        head=replace(launches.head, block_n=4),
    )
    problem = (1, torch.bfloat16, 131072)
    return chain_sites(config, settle_attention(launches, config, problem, H200), BF16, 1, H200)


LLAMA = _config("llama-3.2-1b")
SITES = _sites(LLAMA)


def _launch(shape: tuple[int, int, Sequence[float], Sequence[float]], at: float) -> Iterator[list]:
    programs, staying, waits, goes = shape
    every = -(-programs // 128)
    for program in range(0, staying, every):
        part = program / staying
        before, after = (np.interp(part, (0, 0.1, 0.9, 1), times) + at for times in (waits, goes))
        yield [programs, program, round(before * 1e3), round(after * 1e3)]


def _stamps(num_steps: int) -> Tensor:
    rows = []
    for step in range(num_steps):
        begin = 1e9 + step * STEP_US
        for layer in range(16):
            for shape in LAYER.values():
                rows += _launch(shape, begin + layer * LAYER_US)
        for shape in END.values():
            rows += _launch(shape, begin + 16 * LAYER_US + 2.05)
    rows = rows[20:]  # the buffer begins somewhere in a launch
    return torch.tensor(sorted(rows, key=lambda row: row[3]))


STAMPS = _stamps(4)
STEPS = split_steps(group(STAMPS), SITES)


def test_a_step_is_cut_into_its_launches() -> None:
    assert [len(step) for step in STEPS] == [84, 84]  # of the first step the first kernel is cut
    for step in STEPS:
        names = [site.name for site in SITES]
        found = dict(zip(names[35:40], durations(step)[35:40], strict=True))
        want = {"qkv": 5.37, "attention": 5.89, "o": 3.33, "gate_up": 16.38, "down": 8.45}
        assert found == pytest.approx(want, abs=0.002)
        assert sum(durations(step)) == pytest.approx(STEP_US, abs=0.01)
        left = STEP_US - 16 * LAYER_US - 121.0
        assert durations(step)[-3:] == pytest.approx([119.0, 2.0, left])


def test_programs_that_wait_before_the_release_are_told_from_later_ones() -> None:
    down, o = STEPS[0][4], STEPS[0][2]
    assert down.first_waits - down.release == pytest.approx(31.23 - 33.02, abs=0.01)
    gate_up = STEPS[0][3]
    assert gate_up.first_waits - gate_up.release == pytest.approx(9.22 - 16.64, abs=0.01)
    assert gate_up.last_waits - gate_up.release == pytest.approx(29.95 - 16.64, abs=0.2)
    assert o.last_waits - o.release == pytest.approx(8.96 - 13.31, abs=0.05)


def test_launches_of_equal_size_are_told_apart_by_a_program_that_comes_again() -> None:
    rows = [[2, 0, 0, 5], [2, 1, 1, 5], [2, 0, 6, 9000], [2, 1, 7, 9000], [3, 0, 8, 11000]]
    found = group(torch.tensor(rows))
    assert [(k.programs, k.release) for k in found] == [(2, 0.0), (2, 8.995), (3, 10.995)]


def test_stamps_that_do_not_fit_the_chain_are_one_line() -> None:
    other = [replace(site, programs=7) if site.name == "o" else site for site in SITES]
    with pytest.raises(ConfigError, match=r"hold no step of 83: programs .*expected"):
        split_steps(group(STAMPS), other)
    kernels = group(STAMPS)
    del kernels[200]
    with pytest.raises(ConfigError, match=r"step 1 launches \d+ programs in place \d+, expected"):
        split_steps(kernels, SITES)
    with pytest.raises(ConfigError, match="hold no step"):
        split_steps([], SITES)
    with pytest.raises(ConfigError, match="1 whole steps, needed 2"):
        split_steps(group(_stamps(3)), SITES)


def test_the_table_has_a_line_for_each_site_and_shares_add_up_to_one() -> None:
    table = summary(STEPS, SITES)
    shares = re.findall(r"([\d.]+)%", table.rpartition("\n")[0])
    assert sum(map(float, shares)) == pytest.approx(100, abs=0.5)
    [gate_up] = [line for line in table.splitlines() if line.startswith("gate_up")]
    # 16384 rows of 2048 bf16 in 16.38 us.
    assert gate_up.endswith("16     4096   16.38   16.38   16.38   34.2%   4097   -7.42 +13.17")
    assert f"2 steps of {STEP_US:.1f} us" in table
    assert "first kernel 16.0 us (16.0 to 16.0), 2.1% of a step" in table


def test_a_picture_is_drawn(tmp_path: Path) -> None:
    draw(STEPS, SITES, tmp_path / "gpu" / "timeline.png", "some model")
    assert (tmp_path / "gpu" / "timeline.png").read_bytes().startswith(b"\x89PNG")


@pytest.mark.parametrize("batch", [1, 8])
@pytest.mark.parametrize("preset", ["llama-3.2-1b", "qwen3-0.6b"])
def test_sites_are_what_the_chain_launches(
    preset: str, batch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    launched = []

    def catch(self: Any, *args: object, grid: Any = None, **kwargs: object) -> None:
        del args, kwargs
        launched.append(math.prod(grid or self.grid))

    monkeypatch.setattr(GridExecutor, "__call__", catch)
    monkeypatch.setattr(JITFunction, "run", catch)
    monkeypatch.setattr(torch.Tensor, "is_cuda", True, raising=False)
    monkeypatch.setattr(gpu, "INTERPRETER", H200)
    config = replace(_config(preset), num_layers=2)
    problem = (batch, torch.bfloat16, 64)
    launches = settle_attention(
        choose_launches(config, batch, torch.bfloat16), config, problem, H200
    )
    with torch.inference_mode():
        device = torch.device("meta")
        precision = Precision(torch.bfloat16, torch.bfloat16)
        decoder = random_decoder(config, precision, device=device, num_positions=64)
        shape = (2, 4, 16, config.num_kv_heads, config.head_dim)
        cache = KVCache.allocate(shape, torch.bfloat16, device)
        fields = torch.zeros((5, batch), dtype=torch.int64, device=device)
        table = torch.zeros((batch, 4), dtype=torch.int32, device=device)
        inputs = ForwardBatch(*fields[:3], table, *fields[3:], batch, 0)
        logits = decode_chain.forward(decoder, inputs, cache, launches)
        ops.advance_greedy(logits, fields, fields[:2].clone())
    # The embedding before takes no stamp.
    want = [site.programs for site in chain_sites(config, launches, BF16, batch, H200)]
    assert launched[1:] == want


def test_a_plain_launch_in_the_chain_is_refused() -> None:
    launches = choose_launches(LLAMA, 1, torch.bfloat16)
    launches = settle_attention(launches, LLAMA, (1, torch.bfloat16, 4096), H200)
    plain = replace(launches, gate_up=replace(launches.gate_up, overlap=-1.0))
    with pytest.raises(ConfigError, match="gate_up is a plain launch"):
        chain_sites(LLAMA, plain, BF16, 1, H200)


def test_every_module_with_a_wait_takes_stamps() -> None:
    waiting = {module.__name__ for module in kernel_modules() if hasattr(module, "gdc_wait")}
    not_launched = {"lite_llama.kernel_lib.stamps", "lite_llama.ops.sample.kernel"}
    assert waiting - not_launched == set(timeline.STAMPED_MODULES)


def test_a_machine_that_cannot_is_one_line_and_exit_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("sys.argv", ["timeline"])
    with pytest.raises(SystemExit) as stopped:
        timeline.main()
    assert stopped.value.code == 1
    assert capsys.readouterr().err == (
        "no GPU with dependent launches, needed: compute capability 9.0 or newer\n"
    )
