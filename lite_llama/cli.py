"""The `lite-llama` command: flags to settings, results to the terminal, errors to one line."""

import io
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from lite_llama.errors import ConfigError, LiteLlamaError

if TYPE_CHECKING:
    from lite_llama.completion import TextChunk
    from lite_llama.engine.sampling_params import SamplingParams
    from lite_llama.llm import LLM

app = typer.Typer(
    help="LLM inference in readable Python, with GPU kernels in Triton.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

# Each flag of `serve` has an environment variable of this prefix.
_ENV = "LITE_LLAMA_"

Model = Annotated[
    str | None,
    typer.Option(
        "--model", "-m", help="Hugging Face directory or .gguf file; the small default if absent."
    ),
]
DType = Annotated[str, typer.Option(help="auto, float32, bfloat16 or float16.")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
TensorParallelSize = Annotated[
    int, typer.Option(help="GPUs (on the CPU, processes) that share the model.")
]
MaxModelLen = Annotated[int | None, typer.Option(help="Longest prompt plus answer, in tokens.")]
MaxTokens = Annotated[int | None, typer.Option(help="Longest answer, in tokens.")]
Temperature = Annotated[float | None, typer.Option(help="0 is greedy; default: the model's own.")]
TopP = Annotated[float | None, typer.Option(help="Nucleus sampling, in (0, 1].")]
TopK = Annotated[int | None, typer.Option(help="Sample from the k likeliest tokens.")]
Seed = Annotated[int | None, typer.Option(help="Seed of the draw, for repeatable answers.")]


def main() -> None:
    """Entry point: one line and exit code 2 for an error the user can mend, 130 for Ctrl-C."""
    try:
        app(standalone_mode=True)
    except LiteLlamaError as error:
        print(f"lite-llama: {' '.join(str(error).split())}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        sys.exit(130)


@app.command()
def generate(
    prompt: Annotated[str, typer.Argument(help="The question, or the text to go on with.")],
    model: Model = None,
    raw: Annotated[
        bool, typer.Option("--raw", help="Complete the text as it is, without chat template.")
    ] = False,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: Seed = None,
    dtype: DType = "auto",
    device: Device = "auto",
    max_model_len: MaxModelLen = None,
    tensor_parallel_size: TensorParallelSize = 1,
) -> None:
    """Answer one prompt, streaming."""
    given = _given(
        max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed
    )
    settings = {
        "dtype": dtype,
        "device": device,
        "max_model_len": max_model_len,
        "tensor_parallel_size": tensor_parallel_size,
    }
    with _loaded(model, **settings) as llm:
        params = replace(llm.default_sampling_params(), **given)
        if raw:
            _show(llm.stream(prompt, params))
        else:
            if not prompt:
                llm.engine.add("", [], params)
            _show(llm.stream(llm.render_chat([{"role": "user", "content": prompt}]), params))


@app.command()
def chat(
    model: Model = None,
    system: Annotated[str | None, typer.Option(help="System message.")] = None,
    max_tokens: MaxTokens = None,
    temperature: Temperature = None,
    top_p: TopP = None,
    top_k: TopK = None,
    seed: Seed = None,
    dtype: DType = "auto",
    device: Device = "auto",
    max_model_len: MaxModelLen = None,
    tensor_parallel_size: TensorParallelSize = 1,
) -> None:
    """Talk with the model: /reset forgets, /exit leaves, Ctrl-C stops an answer."""
    given = _given(
        max_tokens=max_tokens, temperature=temperature, top_p=top_p, top_k=top_k, seed=seed
    )
    settings = {
        "dtype": dtype,
        "device": device,
        "max_model_len": max_model_len,
        "tensor_parallel_size": tensor_parallel_size,
    }
    with _loaded(model, **settings) as llm:
        params = replace(llm.default_sampling_params(), **given)
        opening = [{"role": "system", "content": system}] if system else []
        print('/reset forgets, /exit leaves, """ opens and closes several lines, Ctrl-C stops.')
        history = list(opening)
        for text in _lines_from_user():
            if text == "/exit":
                break
            if text == "/reset":
                history = list(opening)
                print("(forgotten)")
                continue
            history.append({"role": "user", "content": text})
            answer = _answer(llm, history, params)
            if answer is None:
                history.pop()
            else:
                history.append({"role": "assistant", "content": answer})


def _answer(llm: "LLM", history: list[dict[str, str]], params: "SamplingParams") -> str | None:
    """The streamed answer (cut short by Ctrl-C), or None if the conversation was refused."""
    pieces: list[str] = []
    try:
        _show(llm.stream(llm.render_chat(history), params), pieces)
    except KeyboardInterrupt:
        print("\n(stopped)")
    except LiteLlamaError as error:
        print(f"lite-llama: {error}", file=sys.stderr)
        return None
    return "".join(pieces)


def _lines_from_user() -> Iterator[str]:
    """Messages typed or piped in; several lines between two lines of three quotes are one."""
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(errors="replace")  # bytes that are no text are no crash
    prompt = "> " if sys.stdin.isatty() else ""
    while True:
        try:
            text = input(prompt).strip()
            if text == '"""':
                lines: list[str] = []
                while (line := input("")) != '"""':
                    lines.append(line)
                text = "\n".join(lines)
        except EOFError:
            return
        except KeyboardInterrupt:
            print("\n(/exit or Ctrl-D leaves)")
            continue
        if text:
            yield text


@contextmanager
def _loaded(model: str | None, **settings: Any) -> Iterator["LLM"]:
    """The model, loaded behind a progress bar on stderr."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (
        TextColumn("Loading weights"),
        BarColumn(),
        DownloadColumn(),
        TimeElapsedColumn(),
    )
    console = Console(stderr=True)
    # Where nobody watches, stderr holds errors and figures only.
    with Progress(
        *columns, console=console, transient=True, disable=not console.is_terminal
    ) as bar:
        task = bar.add_task("load", total=None)
        from lite_llama.llm import LLM

        llm = LLM(
            model,
            progress=lambda done, total: bar.update(task, completed=done, total=total),
            **settings,
        )
    with llm:
        yield llm


def _given(**flags: Any) -> dict[str, Any]:
    """The flags that were given, checked before anyone waits for weights."""
    from lite_llama.engine.sampling_params import SamplingParams

    given = {name: value for name, value in flags.items() if value is not None}
    SamplingParams(**given)
    return given


def _show(chunks: Iterator["TextChunk"], pieces: list[str] | None = None) -> None:
    """Print a streamed answer as it comes, then its figures on stderr."""
    for chunk in chunks:
        print(chunk.text, end="", flush=True)
        if pieces is not None:
            pieces.append(chunk.text)
        if chunk.metrics is not None:
            figures = chunk.metrics
            cached = f" ({figures.num_cached_tokens} cached)" if figures.num_cached_tokens else ""
            print(flush=True)
            print(
                f"[{figures.num_prompt_tokens} prompt tokens{cached}, "
                f"{figures.num_generated_tokens} generated, "
                f"first token after {figures.time_to_first_token_s * 1e3:.0f} ms, "
                f"{figures.tokens_per_s:.1f} tokens/s]",
                file=sys.stderr,
            )


@app.command()
def serve(
    model: Annotated[
        str | None, typer.Argument(help="Directory or .gguf file; the small default if absent.")
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen on.", envvar=_ENV + "HOST")] = (
        "127.0.0.1"
    ),
    port: Annotated[int, typer.Option(help="0 picks a free one.", envvar=_ENV + "PORT")] = 8000,
    api_key: Annotated[
        list[str] | None,
        typer.Option(help="Key that clients need; repeatable.", envvar=_ENV + "API_KEY"),
    ] = None,
    api_key_file: Annotated[
        Path | None, typer.Option(help="File of keys, one a line.", envvar=_ENV + "API_KEY_FILE")
    ] = None,
    served_model_name: Annotated[
        list[str] | None,
        typer.Option(help="Name in the API; repeatable.", envvar=_ENV + "SERVED_MODEL_NAME"),
    ] = None,
    allowed_host: Annotated[
        list[str] | None,
        typer.Option(
            help="Further Host header accepted on loopback.", envvar=_ENV + "ALLOWED_HOST"
        ),
    ] = None,
    max_model_len: Annotated[
        int | None,
        typer.Option(help="Longest prompt plus answer.", envvar=_ENV + "MAX_MODEL_LEN"),
    ] = None,
    max_num_seqs: Annotated[
        int | None, typer.Option(help="Most sequences in a step.", envvar=_ENV + "MAX_NUM_SEQS")
    ] = None,
    max_num_batched_tokens: Annotated[
        int | None,
        typer.Option(help="Most tokens in a step.", envvar=_ENV + "MAX_NUM_BATCHED_TOKENS"),
    ] = None,
    num_blocks: Annotated[
        int | None, typer.Option(help="KV blocks in all.", envvar=_ENV + "NUM_BLOCKS")
    ] = None,
    max_num_queued_reqs: Annotated[
        int | None,
        typer.Option(
            help="Most sequences waiting and running; default 4 x max_num_seqs.",
            envvar=_ENV + "MAX_NUM_QUEUED_REQS",
        ),
    ] = None,
    max_num_queued_tokens: Annotated[
        int | None,
        typer.Option(
            help="Most prompt tokens waiting; default 16 x max_model_len.",
            envvar=_ENV + "MAX_NUM_QUEUED_TOKENS",
        ),
    ] = None,
    dtype: Annotated[
        str, typer.Option(help="auto, float32, bfloat16, float16.", envvar=_ENV + "DTYPE")
    ] = "auto",
    device: Annotated[
        str, typer.Option(help="auto, cpu or cuda.", envvar=_ENV + "DEVICE")
    ] = "auto",
    tensor_parallel_size: Annotated[
        int,
        typer.Option(
            help="GPUs (on the CPU, processes) that share the model.",
            envvar=_ENV + "TENSOR_PARALLEL_SIZE",
        ),
    ] = 1,
    seed: Annotated[
        int | None, typer.Option(help="Of requests that give none.", envvar=_ENV + "SEED")
    ] = None,
    request_timeout: Annotated[
        float,
        typer.Option(help="Longest time of a request, in s.", envvar=_ENV + "REQUEST_TIMEOUT"),
    ] = 600.0,
    step_timeout: Annotated[
        float,
        typer.Option(help="A longer engine step ends the server.", envvar=_ENV + "STEP_TIMEOUT"),
    ] = 30.0,
    shutdown_timeout: Annotated[
        float, typer.Option(help="How long SIGTERM drains, in s.", envvar=_ENV + "SHUTDOWN_TIMEOUT")
    ] = 30.0,
    ssl_certfile: Annotated[
        str | None, typer.Option(help="TLS certificate.", envvar=_ENV + "SSL_CERTFILE")
    ] = None,
    ssl_keyfile: Annotated[
        str | None, typer.Option(help="TLS key.", envvar=_ENV + "SSL_KEYFILE")
    ] = None,
    otlp_traces_endpoint: Annotated[
        str | None,
        typer.Option(
            help="URL that takes OpenTelemetry spans.", envvar=_ENV + "OTLP_TRACES_ENDPOINT"
        ),
    ] = None,
) -> None:
    """Serve an OpenAI-compatible API, and a chat page at /."""
    phases_started = time.perf_counter()
    from lite_llama.server.config import ServeConfig, read_keys
    from lite_llama.server.log import log_to_stderr

    log_to_stderr()

    keys = [*(api_key or ()), *read_keys(api_key_file)]
    config = ServeConfig(
        host=host,
        port=port,
        api_keys=tuple(keys),
        served_model_names=tuple(served_model_name or ()),
        allowed_hosts=tuple(allowed_host or ()),
        max_num_queued_reqs=max_num_queued_reqs,
        max_num_queued_tokens=max_num_queued_tokens,
        request_timeout_s=request_timeout,
        step_timeout_s=step_timeout,
        drain_s=shutdown_timeout,
        seed=seed,
        ssl_certfile=ssl_certfile,
        ssl_keyfile=ssl_keyfile,
        otlp_traces_endpoint=otlp_traces_endpoint,
    )
    if keys and not config.is_loopback and ssl_certfile is None:
        print("lite-llama: keys travel unencrypted; set --ssl-certfile", file=sys.stderr)
    from lite_llama.server.run import Phases
    from lite_llama.server.run import serve as run_server

    phases = Phases(lambda line: print(line, file=sys.stderr, flush=True), phases_started)
    phases.total("import")
    settings = {
        "max_model_len": max_model_len,
        "max_num_seqs": max_num_seqs,
        "max_num_batched_tokens": max_num_batched_tokens,
        "num_blocks": num_blocks,
        "dtype": dtype,
        "device": device,
        "tensor_parallel_size": tensor_parallel_size,
    }
    sys.exit(run_server(model, config, settings, phases))


@app.command()
def inspect(
    model: Annotated[
        str | None, typer.Argument(help="Directory, .gguf file, or llama-3.2-1b as an example.")
    ] = None,
    prompt_len: Annotated[int, typer.Option(help="Tokens of the prefill step shown.")] = 128,
) -> None:
    """Show a model's configuration, its parameter map, its sizes and the shapes of a step."""
    from lite_llama.inspection import describe

    print(describe(model, prompt_len))


bench = typer.Typer(help="Measure on the present device; results go to bench/log.")
app.add_typer(bench, name="bench", no_args_is_help=True)


@bench.command("ops")
def bench_ops(
    names: Annotated[list[str] | None, typer.Argument(help="Operators; all if none.")] = None,
    device: Device = "auto",
    dtype: Annotated[str, typer.Option(help="fp32, fp16 or bf16.")] = "bf16",
    profile: Annotated[
        Path | None, typer.Option(help="Folder for torch-profiler traces with NVTX ranges.")
    ] = None,
) -> None:
    """Time operators against torch, torch.compile and the library torch ships."""
    from lite_llama.bench import plot
    from lite_llama.bench.ops import run
    from lite_llama.engine.config import resolve_device

    run.main(names or (), device=resolve_device(device).type, dtype=dtype, profile=profile)
    plot.main()


@bench.command("latency")
def bench_latency(
    model: Annotated[str | None, typer.Argument(help="Directory or .gguf file.")] = None,
    preset: Annotated[
        str | None, typer.Option(help="Random weights in the shape of llama-3.2-1b, ...")
    ] = None,
    batch: Annotated[str, typer.Option(help="Batch sizes, as 1,2,4.")] = "1",
    prompt_len: Annotated[int, typer.Option(help="Tokens of each prompt.")] = 100,
    gen_len: Annotated[int, typer.Option(help="Tokens to generate.")] = 64,
    compare: Annotated[str | None, typer.Option(help="transformers: measure it beside.")] = None,
    temperature: Annotated[float, typer.Option(help="Of draws; 0 is greedy.")] = 0.0,
    top_k: Annotated[int, typer.Option(help="Draw from so many likeliest tokens; -1: all.")] = -1,
    top_p: Annotated[float, typer.Option(help="Draw from so much of the probability.")] = 1.0,
    ablate: Annotated[
        bool, typer.Option("--ablate", help="The ladder from plain torch to the tuned chain.")
    ] = False,
    dtype: DType = "auto",
    device: Device = "auto",
    tensor_parallel_size: TensorParallelSize = 1,
) -> None:
    """Time to first token and time a token, end to end."""
    from lite_llama.bench import ladder, latency

    if compare not in (None, "transformers"):
        raise ConfigError(f"--compare is {compare!r}, expected transformers")
    sizes = _batch_sizes(batch)
    if ablate:
        if compare or device == "cpu" or tensor_parallel_size != 1 or temperature:
            raise ConfigError(
                "--ablate goes with neither --compare nor --device cpu nor "
                "--tensor-parallel-size nor --temperature; leave one"
            )
        ladder.main(
            model, preset=preset, batch=sizes, prompt_len=prompt_len, gen_len=gen_len, dtype=dtype
        )
        return
    latency.main(
        model,
        preset=preset,
        batch=sizes,
        prompt_len=prompt_len,
        gen_len=gen_len,
        device=device,
        dtype=dtype,
        tensor_parallel_size=tensor_parallel_size,
        compare=compare is not None,
        temperature=temperature,
        top_k=top_k,
        top_p=top_p,
    )


def _batch_sizes(batch: str) -> list[int]:
    sizes = batch.split(",")
    if not all(size.isdecimal() and int(size) > 0 for size in sizes):
        raise ConfigError(f"--batch is {batch!r}, expected positive numbers such as 1,2,4")
    return [int(size) for size in sizes]


@bench.command("serve")
def bench_serve(
    model: Annotated[str, typer.Argument(help="Name of the model at the server.")],
    url: Annotated[str, typer.Option(help="The server.")] = "http://127.0.0.1:8000",
    api_key: Annotated[str | None, typer.Option(envvar=_ENV + "API_KEY")] = None,
    workload: Annotated[str, typer.Option(help="random, shared-prefix or trace.")] = "random",
    trace: Annotated[Path | None, typer.Option(help="JSON lines with a prompt each.")] = None,
    num_requests: Annotated[int, typer.Option(min=1, help="How many.")] = 100,
    prompt_len: Annotated[int, typer.Option(min=4, help="Tokens a prompt, about.")] = 128,
    gen_len: Annotated[int, typer.Option(min=1, help="Tokens an answer.")] = 64,
    request_rate: Annotated[
        float | None, typer.Option(min=0.001, help="Open loop: requests a second.")
    ] = None,
    concurrency: Annotated[int | None, typer.Option(min=1, help="Closed loop: clients.")] = None,
    seed: Annotated[int, typer.Option(help="Of texts and arrivals.")] = 0,
    plot: Annotated[Path | None, typer.Option(help="Draw the distributions here.")] = None,
    output: Annotated[Path | None, typer.Option(help="Write the figures here, as JSON.")] = None,
) -> None:
    """Load an OpenAI-compatible server: TTFT, TPOT, ITL, E2E and tokens/s."""
    import asyncio
    import json
    from dataclasses import asdict

    from rich.console import Console

    from lite_llama.bench.serve import report, workloads
    from lite_llama.bench.serve.load import Target

    if (request_rate is None) == (concurrency is None):
        raise ConfigError("give one of --request-rate (open loop) and --concurrency (closed loop)")
    asks = workloads.choose(workload, (num_requests, prompt_len, gen_len), seed, trace)
    target = Target(url.rstrip("/"), model, api_key, request_rate, concurrency, seed)
    samples, summary = asyncio.run(report.measure(target, asks))
    Console().print(report.table(summary))
    if plot is not None:
        report.plot(samples, plot)
    if output is not None:
        output.write_text(json.dumps(asdict(summary), indent=2) + "\n")


@app.command()
def tune(
    model: Annotated[
        str | None, typer.Argument(help="Directory or .gguf file; the small default if absent.")
    ] = None,
    preset: Annotated[
        str | None, typer.Option(help="Random weights in the shape of llama-3.2-1b, ...")
    ] = None,
    batch: Annotated[str, typer.Option(help="Batch sizes, some of 1,2,4,8,16.")] = "1,2,4,8",
    site: Annotated[
        str, typer.Option(help="all, or some of carveout,qkv,attention,o,gate_up,down,head.")
    ] = "all",
    context: Annotated[int, typer.Option(help="Keys of each sequence.")] = 256,
    exhaustive: Annotated[
        bool, typer.Option("--exhaustive", help="Try every combination of the given sites.")
    ] = False,
    output: Annotated[
        Path | None, typer.Option(help="Table to write; the user's own if absent.")
    ] = None,
    dtype: DType = "auto",
) -> None:
    """Search how the kernels of a decode step are launched best on the present GPU."""
    from lite_llama.tuning import run
    from lite_llama.tuning.space import SITES

    sites = SITES if site == "all" else tuple(site.split(","))
    request = run.Request(tuple(_batch_sizes(batch)), sites, context, exhaustive, output)
    run.main(model, preset, dtype, request)


@app.command()
def doctor() -> None:
    """Show device, versions, free memory, kernel cache and model locations."""
    from lite_llama.inspection import diagnose

    print(diagnose())


if __name__ == "__main__":
    main()
