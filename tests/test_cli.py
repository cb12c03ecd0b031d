"""The command line on the default model: answers, one-line errors, and the chat at a terminal."""

import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from lite_llama import __version__, cli

COMMAND = [sys.executable, "-m", "lite_llama.cli"]
QUESTION = "What is the capital of France?"
STATS = re.compile(
    r"\[\d+ prompt tokens(, | \(\d+ cached\), )\d+ generated, "
    r"first token after \d+ ms, [\d.]+ tokens/s\]"
)


@dataclass(frozen=True)
class Result:
    code: int
    out: str
    err: str


@pytest.fixture
def run(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., Result]:
    """Run the command in this process, which has torch loaded already."""

    def call(*arguments: str) -> Result:
        monkeypatch.setattr(sys, "argv", ["lite-llama", *arguments])
        code = 0
        try:
            cli.main()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1 if end.code else 0
        streams = capsys.readouterr()
        return Result(code, streams.out, streams.err)

    return call


@pytest.mark.parametrize("dtype", ["auto", "float32"])
def test_generate_answers_on_stdout_and_reports_on_stderr(dtype: str) -> None:
    command = [*COMMAND, "generate", QUESTION, "--temperature", "0", "--dtype", dtype]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert result.returncode == 0
    assert result.stdout == "The capital of France is Paris.\n"
    [line] = result.stderr.splitlines()
    assert STATS.fullmatch(line)


def test_raw_completes_the_text_itself(run: Callable[..., Result]) -> None:
    arguments = ("1, 2, 3, 4, 5, 6,", "--raw", "--temperature", "0", "--max-tokens", "6")
    result = run("generate", *arguments)
    assert result.code == 0
    assert result.out.startswith(" 7, 8,")
    assert "6 generated" in result.err


def test_a_seed_repeats_the_answer(run: Callable[..., Result]) -> None:
    options = ("--raw", "--temperature", "1.5", "--max-tokens", "12", "--top-k", "500")
    first, again, other = (
        run("generate", "Once", *options, "--seed", seed).out for seed in ("1", "1", "2")
    )
    assert first == again
    assert first != other


def test_a_flag_out_of_range_is_one_line_naming_it(run: Callable[..., Result]) -> None:
    bad = {
        "temperature": ("nan", "inf", "-1", "3"),
        "top_p": ("0", "1.5"),
        "top_k": ("-2",),
        "max_tokens": ("0",),
        "seed": (str(2**63),),
    }
    for name, values in bad.items():
        for value in values:
            result = run("generate", "x", f"--{name.replace('_', '-')}={value}")
            assert_refused(result, name)


def assert_refused(result: Result, word: str) -> None:
    assert result.code == 2
    assert result.out == ""
    [line] = result.err.splitlines()
    assert line.startswith("lite-llama: ")
    assert word in line
    assert "Traceback" not in line


def refusals(folder: Path, model: Path) -> dict[str, tuple[list[str], str]]:
    """Arguments that must be refused, and a word of the line that says why."""
    (folder / "weights.bin").write_bytes(b"x" * 100)
    with model.open("rb") as file:
        (folder / "cut.gguf").write_bytes(file.read(4_000_000))
        file.seek(0)
        (folder / "header.gguf").write_bytes(file.read(1000))
    (folder / "empty.gguf").write_bytes(b"")
    (folder / "empty").mkdir()
    return {
        "missing path": (["-m", "/no/such/model"], "/no/such/model"),
        "pickle": (["-m", str(folder / "weights.bin")], "pickled"),
        "truncated data": (["-m", str(folder / "cut.gguf")], "cut.gguf"),
        "truncated header": (["-m", str(folder / "header.gguf")], "header.gguf"),
        "empty file": (["-m", str(folder / "empty.gguf")], "empty"),
        "empty directory": (["-m", str(folder / "empty")], "empty"),
        "unknown dtype": (["--dtype", "int8"], "dtype is 'int8'"),
        "unknown device": (["--device", "tpu"], "device is 'tpu'"),
        "no GPU": (["--device", "cuda"], "device is 'cuda'"),
        "context too large": (["--max-model-len", "9999"], "max_model_len is 9999, limit 8192"),
    }


def test_a_setting_that_cannot_be_met_is_one_line(
    run: Callable[..., Result],
    smollm2_path: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    for arguments, word in refusals(tmp_path, smollm2_path).values():
        assert_refused(run("generate", "x", *arguments), word)


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        ([""], "prompt is empty"),
        (["", "--raw"], "prompt is empty"),
        (["word " * 300, "--max-model-len", "256"], "limit 255"),
        (["word " * 800, "--max-model-len", "256", "--raw"], "bytes, limit 2048"),
        (["\udcff\udcfe"], "surrogate"),
        (["\udcff\udcfe", "--raw"], "surrogate"),
    ],
)
def test_a_prompt_that_cannot_be_served_is_one_line(
    run: Callable[..., Result], arguments: list[str], word: str
) -> None:
    assert_refused(run("generate", *arguments), word)


def test_an_error_is_one_line_in_a_real_terminal_process_too() -> None:
    command = [*COMMAND, "generate", "x", "--temperature", "3"]
    result = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert_refused(
        Result(result.returncode, result.stdout, result.stderr), "temperature is 3.0, limit [0, 2]"
    )


def test_inspect_shows_the_default_model(run: Callable[..., Result]) -> None:
    result = run("inspect")
    assert (result.code, result.err) == (0, "")
    lines = [re.split(r"  +", line) for line in result.out.splitlines()]
    assert ["parameters", "134,515,008"] in lines
    assert ["heads (query / key) x dim", "9 / 3 x 64"] in lines
    assert ["KV bytes a token (16-bit)", "23,040"] in lines
    assert [
        "blk.0.attn_q.weight", "[576, 576]", "Q4_1", "layers.0.qkv.weight", "[960, 576]"
    ] in lines  # fmt: skip


def test_inspect_gives_the_exact_figures_of_llama(run: Callable[..., Result]) -> None:
    result = run("inspect", "llama-3.2-1b", "--prompt-len", "100")
    assert (result.code, result.err) == (0, "")
    lines = [re.split(r"  +", line) for line in result.out.splitlines()]
    assert ["parameters", "1,235,814,400"] in lines
    assert ["weight bytes", "2,471,628,800"] in lines
    assert ["KV bytes a token (16-bit)", "32,768"] in lines
    assert ["qkv", "[100, 3072]", "[1, 3072]"] in lines


def test_inspect_refuses_what_it_cannot_read(run: Callable[..., Result], tmp_path: Path) -> None:
    assert_refused(run("inspect", str(tmp_path / "nothing")), "nothing")
    assert_refused(run("inspect", "llama-3.2-1b", "--prompt-len", "0"), "prompt_len")


def test_doctor_reports_the_machine(run: Callable[..., Result], smollm2_path: Path) -> None:
    result = run("doctor")
    assert (result.code, result.err) == (0, "")
    report = dict(re.split(r"  +", line, maxsplit=1) for line in result.out.splitlines())
    assert report["default model"] == str(smollm2_path)
    assert re.fullmatch(r"[\d.]+ GiB", report["free memory"])
    assert __import__("torch").__version__ in report["torch"]


def test_doctor_names_the_tuned_tables_of_a_gpu(
    run: Callable[..., Result], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from lite_llama import inspection
    from lite_llama.kernel_lib import gpu, tuned

    assert "none: no GPU" in run("doctor").out
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    monkeypatch.setattr(gpu, "gpu_spec", lambda _: gpu.B200)
    monkeypatch.setattr(Path, "home", lambda: tmp_path)
    monkeypatch.setattr(tuned, "SHIPPED", tmp_path / "shipped")
    assert inspection._tuned_launches() == "none own for NVIDIA B200; none shipped for NVIDIA B200"
    tuned.SHIPPED.mkdir()
    entry = (
        '{"shape": {}, "dtype": "bfloat16", "batch": 1, "kernels": "%s", "sites": {}, '
        '"attention_kernel": "", "measured": {}}'
    )
    entries = f"{entry % tuned.kernel_version(tuned.PRODUCTS)}, {entry % 'old'}"
    (tuned.SHIPPED / "nvidia-b200.json").write_text(f'{{"entries": [{entries}]}}')
    assert "shipped: 2 entries, 1 stale" in inspection._tuned_launches()
    (tuned.SHIPPED / "nvidia-b200.json").write_text("{")
    assert "cannot be read as JSON" in inspection._tuned_launches()


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("tune", "--preset", "llama-3.2-1b"), "torch sees none"),
        (("tune", "--batch", "3"), "--batch has 3"),
        (("tune", "--batch", "x"), "--batch is 'x'"),
        (("tune", "--site", "mlp"), "--site has 'mlp'"),
        (("bench", "latency", "--ablate"), "torch sees no GPU"),
        (("bench", "latency", "--ablate", "--compare", "transformers"), "--ablate goes with"),
        (("bench", "latency", "--ablate", "--temperature", "1"), "--ablate goes with"),
        (("bench", "latency", "--temperature", "3"), "temperature is 3.0"),
        (
            ("bench", "latency", "--temperature", "1", "--compare", "transformers"),
            "expected 0 with --compare",
        ),
    ],
)
def test_what_needs_a_gpu_or_another_flag_is_one_line(
    run: Callable[..., Result],
    monkeypatch: pytest.MonkeyPatch,
    arguments: tuple[str, ...],
    word: str,
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert_refused(run(*arguments), word)


def test_help_names_every_command(run: Callable[..., Result]) -> None:
    result = run("--help")
    assert result.code == 0
    assert all(name in result.out for name in ("generate", "chat", "inspect", "tune", "doctor"))
    assert __version__ == "0.1.0"


# --- chat ----------------------------------------------------------------------------------

CHAT = [*COMMAND, "chat", "--temperature", "0", "--max-tokens", "24"]


def piped(text: bytes, *options: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(
        [*CHAT, *options], input=text, capture_output=True, timeout=120, check=False
    )


def test_chat_answers_what_is_piped_in() -> None:
    lines = [
        QUESTION.encode(),
        b"",
        b"/reset",
        b'"""',
        b"What is the capital",
        b"of France?",
        b'"""',
        b"\xff\xfe is no text",
        b"/exit",
        b"never read",
    ]
    result = piped(b"\n".join(lines))
    assert result.returncode == 0
    out, err = result.stdout.decode().splitlines(), result.stderr.decode().splitlines()
    assert out[1] == "The capital of France is Paris."
    assert out[2] == "(forgotten)"
    assert "Paris" in out[3]
    stats = [line for line in err if STATS.fullmatch(line)]
    assert len(stats) == 3
    # The second conversation is a new one: the prompt is as long as the first.
    prompts = [int(line[1:].split()[0]) for line in stats]
    assert abs(prompts[1] - prompts[0]) <= 1
    assert not [line for line in err if "Traceback" in line]


def test_chat_remembers_and_refuses_without_ending() -> None:
    lines = [QUESTION, "word " * 600, "And where is it?"]
    result = piped("\n".join(lines).encode(), "--max-model-len", "256", "--system", "Be brief.")
    assert result.returncode == 0
    err = result.stderr.decode().splitlines()
    assert len(err) == 3
    assert err[1].startswith("lite-llama: prompt has ")
    assert STATS.fullmatch(err[0])
    assert STATS.fullmatch(err[2])
    assert "cached" in err[2]


class Terminal:
    """The chat at a pseudo-terminal, read with a deadline."""

    def __init__(self, command: list[str]) -> None:
        self.pid, self.fd = pty.fork()
        if self.pid == 0:
            # A suite started in the background of a shell ignores Ctrl-C, and so would the child.
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            os.execv(command[0], command)
        self.seen = ""

    def wait_for(self, pattern: str, timeout: float = 60.0) -> str:
        """Read until `pattern` comes; what was read up to its end."""
        deadline = time.monotonic() + timeout
        while not (found := re.search(pattern, self.seen)):
            ready, _, _ = select.select([self.fd], [], [], max(0.0, deadline - time.monotonic()))
            assert ready, f"{pattern!r} did not come; seen: {self.seen[-500:]!r}"
            self.seen += os.read(self.fd, 65536).decode(errors="replace")
        text, self.seen = self.seen[: found.end()], self.seen[found.end() :]
        return text

    def write(self, text: str) -> None:
        os.write(self.fd, text.encode())

    def end(self) -> int:
        """The exit code, once the program has ended by itself."""
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            ready, _, _ = select.select([self.fd], [], [], 0.1)
            if ready:
                try:
                    self.seen += os.read(self.fd, 65536).decode(errors="replace")
                except OSError:  # Linux: the other side is closed
                    break
        pid, status = os.waitpid(self.pid, 0)
        assert pid == self.pid
        return os.waitstatus_to_exitcode(status)

    def kill(self) -> None:
        try:
            os.kill(self.pid, signal.SIGKILL)
            os.waitpid(self.pid, 0)
        except (ProcessLookupError, ChildProcessError):
            pass
        os.close(self.fd)


def test_ctrl_c_stops_an_answer_and_the_chat_goes_on() -> None:
    terminal = Terminal([*COMMAND, "chat", "--temperature", "0", "--max-tokens", "2000"])
    try:
        terminal.wait_for(r"> $")
        time.sleep(0.5)  # Python misses a signal between the prompt and its read
        terminal.write("\x03")
        terminal.wait_for(r"/exit or Ctrl-D leaves")
        terminal.wait_for(r"> $")
        terminal.write("Write a very long story about the sea, with many chapters.\n")
        terminal.wait_for(r"\r\n.{40}")  # the echo of the line, then some of the answer
        terminal.write("\x03")
        terminal.wait_for(r"\(stopped\)")
        terminal.wait_for(r"> $")
        terminal.write(f"{QUESTION}\n")
        terminal.wait_for(r"Paris")
        terminal.wait_for(r"tokens/s\]")
        terminal.wait_for(r"> $")
        terminal.write("/exit\n")
        assert terminal.end() == 0
        assert "Traceback" not in terminal.seen
    finally:
        terminal.kill()


def test_ctrl_c_ends_generate_with_130() -> None:
    # Greedy: one that is drawn may end before there is anything to stop.
    ask = ["generate", "Tell a long story.", "--temperature", "0", "--max-tokens", "2000"]
    terminal = Terminal([*COMMAND, *ask])
    try:
        terminal.wait_for(r"[A-Za-z ,.']{60}")
        terminal.write("\x03")
        assert terminal.end() == 130
        assert "Traceback" not in terminal.seen
    finally:
        terminal.kill()
