"""Row A11 of the matrix: clients that others wrote, each run once against our server.

They bring packages of their own, so they are installed apart and found by `--clients`, a list of
folders: `pip install 'lm-eval[api]' guidellm` in one environment, `pip install aiperf` in another.
Nothing is downloaded while they run: the tasks and the tokenizer are files made here. vLLM's own
`vllm bench serve` is not run: it comes with the whole of vLLM and its CUDA build of torch.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import transformers

from tests.server.servers import MODEL, ServerProcess, server_process

pytestmark = pytest.mark.timeout(900)
QUESTIONS = [
    {"question": "What is the capital of France?", "choices": [" Paris", " Rome"], "label": 0},
    {"question": "How many legs has a cat?", "choices": [" Four", " Nine"], "label": 0},
]
PICK = """
task: pick
dataset_path: json
dataset_kwargs: {{data_files: {{test: {items}}}}}
test_split: test
output_type: multiple_choice
doc_to_text: "Question: {{{{question}}}}\\nAnswer:"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: label
metric_list: [{{metric: acc}}]
"""
SAY = """
task: say
dataset_path: json
dataset_kwargs: {{data_files: {{test: {items}}}}}
test_split: test
output_type: generate_until
doc_to_text: "{{{{question}}}}"
doc_to_target: "{{{{choices[label]}}}}"
generation_kwargs: {{until: ["\\n"], max_gen_toks: 12}}
metric_list: [{{metric: exact_match}}]
"""


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ServerProcess]:
    with server_process(tmp_path_factory.mktemp("served"), "--max-model-len", "1024") as server:
        yield server
        statuses = set(re.findall(r" POST \S+ (\d+) ", server.read_log()))
        assert statuses == {"200"}


@pytest.fixture(scope="module")
def tokenizer(smollm2_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The default model's tokenizer in the form that these clients read."""
    folder = tmp_path_factory.mktemp("tokenizer")
    read = transformers.AutoTokenizer.from_pretrained(
        smollm2_path.parent, gguf_file=smollm2_path.name
    )
    read.save_pretrained(folder)
    return folder


def run(config: pytest.Config, folder: Path, *command: str) -> str:
    """What a client printed; skipped with the reason if it is not installed."""
    where = config.getoption("--clients")
    tool = shutil.which(command[0], path=where)
    if tool is None:
        pytest.skip(f"{command[0]} is not in {where or 'PATH'}; see tests/server/soak_clients.py")
    done = subprocess.run(
        [tool, *command[1:]],
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=600,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    return done.stdout


@pytest.mark.parametrize(
    ("adapter", "path", "tasks"),
    [
        ("local-completions", "completions", "pick,say"),
        ("local-chat-completions", "chat/completions", "say"),
    ],
)
def test_lm_eval_reads_logprobs_and_generates(
    served: ServerProcess,
    tokenizer: Path,
    tmp_path: Path,
    pytestconfig: pytest.Config,
    adapter: str,
    path: str,
    tasks: str,
) -> None:
    items = tmp_path / "items.jsonl"
    items.write_text("\n".join(json.dumps(each) for each in QUESTIONS))
    for name, text in (("pick", PICK), ("say", SAY)):
        (tmp_path / f"{name}.yaml").write_text(text.format(items=items))
    settings = {
        "model": MODEL,
        "base_url": f"{served.url}/v1/{path}",
        "tokenizer": tokenizer,
        "num_concurrent": 1,
        "max_retries": 1,
    }
    arguments = ",".join(f"{key}={value}" for key, value in settings.items())
    command = ["lm_eval", "--model", adapter, "--model_args", arguments, "--tasks", tasks]
    if "chat" in adapter:
        command.append("--apply_chat_template")
    said = run(pytestconfig, tmp_path, *command, "--include_path", str(tmp_path))
    assert "exact_match" in said
    if "pick" in tasks:  # a model that knows the capital of France, by its log-probabilities
        assert re.search(r"\|acc +\|[^|]*\|\s+1\|", said), said[-800:]


def test_aiperf_ends_without_an_error(
    served: ServerProcess, tokenizer: Path, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    sizes = ("--synthetic-input-tokens-mean", "30", "--output-tokens-mean", "8")
    run(
        pytestconfig,
        tmp_path,
        *("aiperf", "profile", "--model", MODEL, "--url", served.url, "--endpoint-type", "chat"),
        *("--streaming", "--tokenizer", str(tokenizer), "--concurrency", "2"),
        *("--request-count", "6", *sizes, "--ui", "none", "--artifact-dir", str(tmp_path)),
    )
    figures = json.loads((tmp_path / "profile_export_aiperf.json").read_text())
    assert figures["request_count"]["avg"] == 6


def test_guidellm_ends_without_an_error(
    served: ServerProcess, tokenizer: Path, tmp_path: Path, pytestconfig: pytest.Config
) -> None:
    report = tmp_path / "report.json"
    run(
        pytestconfig,
        tmp_path,
        *("guidellm", "run", "--backend", f"kind=openai_http,target={served.url},model={MODEL}"),
        *("--profile", "kind=synchronous", "--constraint", "kind=max_requests,count=5"),
        *("--data", "kind=synthetic_text,prompt_tokens=30,output_tokens=8"),
        *("--tokenizer", f"kind=huggingface_auto,model={tokenizer}"),
        *("--output", f"kind=json,path={report}", "--disable-console-interactive"),
    )
    [benchmark] = json.loads(report.read_text())["benchmarks"]
    totals = benchmark["metrics"]["request_totals"]
    assert (totals["successful"], totals["errored"]) == (5, 0)
