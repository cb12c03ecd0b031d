"""`lite-llama bench latency`: time to first token and time a token, end to end.

What is timed is what a caller waits for: scheduling, the step, sampling and the read of the token,
in Python, for a batch of equal prompts, with end-of-sequence ignored. Engines take turns
within one process and the median of the rounds is kept, because the machine's speed drifts.
"""

import resource
import statistics
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from lite_llama.bench import record
from lite_llama.bench.harness import Machine, measure_machine
from lite_llama.bench.peers import Transformers
from lite_llama.checkpoint.default_model import find_default_model
from lite_llama.checkpoint.reader import Checkpoint, open_checkpoint
from lite_llama.engine.config import EngineConfig, choose_num_blocks, free_memory, resolve
from lite_llama.engine.engine import Engine
from lite_llama.engine.sampling_params import SamplingParams
from lite_llama.engine.workers import Workers
from lite_llama.errors import ConfigError
from lite_llama.models.loader import check_shares, load_decoder, random_decoder, read_config
from lite_llama.models.presets import preset_config

ROUNDS = 5
GREEDY = SamplingParams(temperature=0.0)

# prompts, tokens to generate -> seconds to first token, seconds a token, tokens
Measure = Callable[[list[list[int]], int], tuple[float, float, list[list[int]]]]


def main(
    model: str | None = None,
    *,
    preset: str | None = None,
    batch: list[int] | None = None,
    prompt_len: int = 100,
    gen_len: int = 64,
    device: str = "auto",
    dtype: str = "auto",
    tensor_parallel_size: int = 1,
    compare: bool = False,
    temperature: float = 0.0,
    top_k: int = -1,
    top_p: float = 1.0,
    log: Path = record.DEFAULT_FOLDER,
) -> None:
    """Measure, print a table, append to the log. Greedy, if not said otherwise.

    `preset` takes random weights of a well-known shape in place of a model's; `compare` runs
    transformers beside, in fp32 on the CPU and in the engine's dtype on a GPU.
    """
    params = SamplingParams(temperature=temperature, top_k=top_k, top_p=top_p)
    if compare and temperature:
        raise ConfigError(f"--temperature is {temperature:g}, expected 0 with --compare; leave one")
    settings = EngineConfig(
        device=device,
        dtype=dtype,  # type: ignore[arg-type]
        prefix_caching=False,
        tensor_parallel_size=tensor_parallel_size,
    )
    if compare:  # leave room for the other one, and its cache
        blocks_per_seq = -(-(prompt_len + gen_len) // settings.block_size)
        settings = replace(settings, num_blocks=max(batch or [1]) * blocks_per_seq)
    engine = build_engine(settings, model, preset)
    name = preset or (Path(model).name if model else find_default_model().stem)
    if tensor_parallel_size > 1:
        name += f" tp{tensor_parallel_size}"
    machine = measure_machine(engine.plan.device)
    run = record.describe_run(engine.plan.device)
    engines: dict[str, Measure] = {"lite_llama": partial(measure_engine, engine, params=params)}
    if compare:
        engines["transformers"] = _peer(settings, model, preset).measure
    for size in batch or [1]:
        # On average, half of the answer is there.
        floor = floor_s(engine, machine, size * (prompt_len + gen_len // 2))
        prompts = random_prompts(size, prompt_len, engine.model.vocab_size)
        results = take_turns(engines, prompts, gen_len)
        case = f"{name} b{size} p{prompt_len}{draw_name(params)} g{gen_len}"
        lines = [
            make_line(case, which, times, size, floor if which == "lite_llama" else 0.0)
            for which, times in results.items()
        ]
        for line in lines:
            print(row(line))
        record.append(run, lines, log)
    engine.close()
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(f"peak memory of this process, all engines together: {peak_mib:.0f} MiB")


def build_engine(settings: EngineConfig, model: str | None, preset: str | None) -> Engine:
    """An engine on a checkpoint, or on random weights in a preset's shape.

    With ranks that share the model, `Engine.close` ends them.
    """
    checkpoint: Checkpoint | None = None
    if preset is not None:
        config = preset_config(preset)
        path = None
    else:
        checkpoint = open_checkpoint(find_default_model() if model is None else model)
        config = read_config(checkpoint)
        path = str(checkpoint.path.resolve())
    plan = resolve(settings, config)
    workers = None
    if plan.tensor_parallel_size > 1:
        if checkpoint is not None:
            check_shares(checkpoint, config, plan.tensor_parallel_size)
        workers = Workers(plan, model=path, preset=preset)
    placed: dict[str, Any] = {
        "device": plan.device,
        "num_positions": plan.max_model_len,
        "ranks": None if workers is None else workers.ranks,
    }
    decoder = (
        random_decoder(config, plan.precision, **placed)
        if checkpoint is None
        else load_decoder(checkpoint, config, plan.precision, **placed)
    )
    free_bytes = free_memory(plan.device) if workers is None else workers.meet()
    num_blocks = choose_num_blocks(settings, plan, decoder.config, free_bytes)
    return Engine(decoder, plan, num_blocks, frozenset(), workers)


def draw_name(params: SamplingParams) -> str:
    """What a case's name says of a draw that is not greedy."""
    if not params.temperature:
        return ""
    name = f" t={params.temperature:g}"
    name += f" k={params.top_k}" if params.top_k > 0 else ""
    return name + (f" p={params.top_p:g}" if params.top_p < 1 else "")


def measure_engine(
    engine: Engine, prompts: list[list[int]], gen_len: int, params: SamplingParams = GREEDY
) -> tuple[float, float, list[list[int]]]:
    """(seconds until every prompt has its first token, seconds a step while all decode, tokens).

    Prompts that were computed first end first: what comes after that is not timed. ConfigError if
    there is no step to time.
    """
    params = replace(params, max_tokens=gen_len, ignore_eos=True)
    tokens: dict[str, list[int]] = {str(i): [] for i in range(len(prompts))}
    begin = time.perf_counter()
    for request_id, prompt in zip(tokens, prompts, strict=True):
        engine.add(request_id, prompt, params)
    first = last = 0.0
    while engine.has_requests:
        for output in engine.step():
            tokens[output.request_id].append(output.token_id)
        longest = max(map(len, tokens.values()))
        if not first and all(tokens.values()):
            first = time.perf_counter() - begin
            num_left = gen_len - longest
        if not last and longest == gen_len:
            last = time.perf_counter() - begin
    if num_left < 1:
        raise ConfigError(
            f"gen_len is {gen_len}, limit {gen_len - num_left + 1}: steps are timed after every "
            "prompt has its first token; raise it"
        )
    return first, (last - first) / num_left, list(tokens.values())


def floor_s(engine: Engine, machine: Machine, num_cached: int) -> float:
    """Least seconds of a step: the bytes of all weights, and of the keys and values of
    `num_cached` tokens, once, over the measured bandwidth."""
    if not machine.bytes_per_s:
        return 0.0
    decoder = engine.runner.decoder
    num_bytes = decoder.head.weight.nbytes
    item_bytes = engine.plan.precision.activations.itemsize
    num_bytes += num_cached * engine.model.kv_bytes_per_token(item_bytes)
    for block in decoder.blocks:
        linears = (block.attention.qkv, block.attention.o, block.mlp.gate_up, block.mlp.down)
        num_bytes += sum(linear.weight.nbytes for linear in linears)
    return num_bytes / machine.bytes_per_s


def _peer(settings: EngineConfig, model: str | None, preset: str | None) -> Transformers:
    on_cpu = resolve_cpu(settings)
    exact = EngineConfig(
        device=settings.device, dtype="float32" if on_cpu else settings.dtype, num_blocks=1
    )
    engine = build_engine(exact, model, preset)
    return Transformers(engine.runner.decoder, engine.plan.precision.activations)


def resolve_cpu(settings: EngineConfig) -> bool:
    """Whether these settings run on the CPU."""
    return settings.device == "cpu" or not torch.cuda.is_available()


def random_prompts(num_prompts: int, length: int, vocab_size: int) -> list[list[int]]:
    """Distinct random prompts, the same in every run."""
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(0, min(vocab_size, 10000), (num_prompts, length), generator=generator)
    listed: list[list[int]] = ids.tolist()
    return listed


def take_turns(
    engines: dict[str, Measure], prompts: list[list[int]], gen_len: int
) -> dict[str, list[tuple[float, float]]]:
    """(seconds to the first token, seconds a step) of each round, by engine."""
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in engines}
    for measure in engines.values():
        measure(prompts, gen_len)  # warm up: many prompts take as many steps
    for _ in range(ROUNDS):
        for name, measure in engines.items():
            first, each, _ = measure(prompts, gen_len)
            times[name].append((first, each))
    return times


def make_line(
    case: str, engine: str, times: list[tuple[float, float]], batch: int, floor: float
) -> dict[str, Any]:
    """A line of the log from (seconds to the first token, seconds a step) of each round.

    `floor`: least seconds of a step, 0 where it is not the engine's.
    """
    steps = sorted(each for _, each in times)
    median = statistics.median(steps)
    return {
        "bench": "latency",
        "case": case,
        "engine": engine,
        "median_us": round(median * 1e6, 2),
        "p20_us": round(steps[len(steps) // 5] * 1e6, 2),
        "p80_us": round(steps[-1 - len(steps) // 5] * 1e6, 2),
        "ttft_ms": round(statistics.median(first for first, _ in times) * 1e3, 3),
        "tokens_per_s": round(batch / median, 2),
        **(
            {"floor_us": round(floor * 1e6, 2), "roof_fraction": round(floor / median, 4)}
            if floor
            else {}
        ),
    }


def row(line: dict[str, Any]) -> str:
    """A line of the log for the terminal."""
    roof = f"  {line['roof_fraction']:6.1%} of roof" if "roof_fraction" in line else ""
    return (
        f"{line['case']:44} {line['engine']:14} {line['median_us'] / 1e3:9.3f} ms a token "
        f"[{line['p20_us'] / 1e3:.3f}, {line['p80_us'] / 1e3:.3f}]  "
        f"first token {line['ttft_ms']:8.2f} ms  {line['tokens_per_s']:9.1f} tokens/s{roof}"
    )
