"""Opening a model: what a directory gives, and what is refused with which hint."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lite_llama.checkpoint.reader import open_checkpoint
from lite_llama.errors import ModelFileError, ModelNotFound, UnsupportedModel
from lite_llama.formats import registry
from tests.checkpoint import gguf_writer as w


@pytest.fixture
def model(tmp_path: Path) -> Path:
    home = tmp_path / "model"
    home.mkdir()
    (home / "config.json").write_text('{"model_type": "llama", "vocab_size": 3}')
    save_file({"a": torch.tensor([1.0, 2.0]).bfloat16()}, home / "model.safetensors")
    return home


def refusal(path: Path, error: type[ModelFileError]) -> str:
    with pytest.raises(ModelFileError) as caught:
        open_checkpoint(path)
    assert type(caught.value) is error
    message = str(caught.value)
    assert "\n" not in message
    assert str(path) in message
    return message


def test_a_directory_gives_tensors_config_and_the_tokenizers_files(model: Path) -> None:
    (model / "generation_config.json").write_text('{"eos_token_id": [1, 2]}')
    (model / "tokenizer_config.json").write_text('{"bos_token": "<s>", "chat_template": "old"}')
    (model / "chat_template.jinja").write_text("{{ messages }}é")
    (model / "tokenizer.json").write_text("{}")
    checkpoint = open_checkpoint(str(model))
    assert checkpoint.kind == "hf"
    assert checkpoint.path == model
    assert checkpoint.metadata == {"model_type": "llama", "vocab_size": 3}
    assert checkpoint.generation_config == {"eos_token_id": [1, 2]}
    assert checkpoint.tokenizer_config["bos_token"] == "<s>"
    assert checkpoint.chat_template == "{{ messages }}é"
    assert checkpoint.tokenizer_path == model / "tokenizer.json"
    assert registry.dequantize(checkpoint.tensors["a"]).tolist() == [1.0, 2.0]


def test_files_that_are_not_there_read_as_empty(model: Path) -> None:
    checkpoint = open_checkpoint(model)
    assert checkpoint.generation_config == {}
    assert checkpoint.tokenizer_config == {}
    assert checkpoint.chat_template is None
    assert checkpoint.tokenizer_path is None


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        ("{{ x }}", "{{ x }}"),
        (
            [{"name": "tool_use", "template": "t"}, {"name": "default", "template": "d"}],
            "d",
        ),
        ([{"name": "tool_use", "template": "t"}], None),
        (None, None),
    ],
)
def test_the_template_falls_back_to_the_tokenizers(template, expected, model: Path) -> None:
    (model / "tokenizer_config.json").write_text(json.dumps({"chat_template": template}))
    assert open_checkpoint(model).chat_template == expected


def test_a_gguf_file_gives_its_template_and_no_hugging_face_files(tmp_path: Path) -> None:
    path = tmp_path / "m.gguf"
    path.write_bytes(w.small_model(w.string_key("tokenizer.chat_template", "{{ x }}")))
    checkpoint = open_checkpoint(path)
    assert (checkpoint.kind, checkpoint.chat_template) == ("gguf", "{{ x }}")
    assert checkpoint.metadata["general.architecture"] == "llama"
    assert checkpoint.tensors["token_embd.weight"].shape == (3, 4)
    assert checkpoint.tokenizer_path is None
    path.write_bytes(w.small_model(w.u32_key("tokenizer.chat_template", 1)))
    assert "'tokenizer.chat_template' is not a string" in refusal(path, ModelFileError)


def test_a_missing_path_is_not_found(tmp_path: Path) -> None:
    assert "nothing is downloaded" in refusal(tmp_path / "org" / "name", ModelNotFound)
    assert "does not exist" in refusal(tmp_path / "x.gguf", ModelNotFound)
    with pytest.raises(ModelNotFound, match=r"'a\\x00b' does not exist"):
        open_checkpoint("a\0b")
    with pytest.raises(ModelNotFound, match=r"aaa\.\.\.' cannot be opened \(File name too long\)"):
        open_checkpoint("a" * 5000)


def test_an_empty_directory_is_not_found(tmp_path: Path) -> None:
    assert "holds no *.safetensors file" in refusal(tmp_path, ModelNotFound)


def test_a_directory_without_config_is_not_found(model: Path) -> None:
    (model / "config.json").unlink()
    assert "holds no config.json" in refusal(model, ModelNotFound)


def test_a_directory_of_gguf_files_names_one(tmp_path: Path) -> None:
    (tmp_path / "m.Q4_0.gguf").touch()
    assert f"give one of them, as {tmp_path / 'm.Q4_0.gguf'}" in refusal(tmp_path, ModelNotFound)


@pytest.mark.parametrize("name", ["pytorch_model.bin", "model.pt", "consolidated.00.pth", "m.pkl"])
def test_pickled_weights_are_refused_with_a_hint(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(b"\x80\x04.")
    for given in (path, tmp_path):
        message = refusal(given, UnsupportedModel)
        assert name in message
        assert "convert them to safetensors" in message


@pytest.mark.parametrize("name", ["model.safetensors", "config.json"])
def test_a_part_of_a_model_is_answered_with_its_directory(name: str, model: Path) -> None:
    assert f"give its directory, {model}" in refusal(model / name, ModelFileError)


def test_remote_code_is_refused(model: Path) -> None:
    auto_map = {"AutoModelForCausalLM": "modeling_evil.Evil"}
    (model / "config.json").write_text(json.dumps({"model_type": "llama", "auto_map": auto_map}))
    message = refusal(model, UnsupportedModel)
    assert "'auto_map'" in message
    assert "remove this key" in message


@pytest.mark.parametrize("name", ["config.json", "generation_config.json", "tokenizer_config.json"])
@pytest.mark.parametrize(
    ("text", "message"),
    [
        (b"{", "not valid JSON"),
        (b"[]", "a JSON object is expected, not list"),
        (b"\xff{}", "not UTF-8 text at byte 0"),
        (b'{"a":' + b"[" * 200_000, "nested too deep"),
        (b'{"a": 1, "a": 2}', "key 'a' appears twice"),
    ],
    ids=["cut", "list", "binary", "deep", "duplicate"],
)
def test_a_broken_json_file_is_refused_by_name(name, text, message, model: Path) -> None:
    (model / name).write_bytes(text)
    refused = refusal(model, ModelFileError)
    assert message in refused
    assert str(model / name) in refused


@pytest.mark.parametrize(
    "name", ["config.json", "tokenizer.json", "chat_template.jinja", "tokenizer_config.json"]
)
def test_a_link_out_of_the_directory_is_refused(name: str, model: Path) -> None:
    (model.parent / "secret").write_text("{}")
    (model / name).unlink(missing_ok=True)
    (model / name).symlink_to("../secret")
    assert f"{name} links out of its directory" in refusal(model, ModelFileError)


def test_a_template_that_is_no_text_is_refused(model: Path) -> None:
    (model / "tokenizer_config.json").write_text('{"chat_template": 3}')
    assert "'chat_template' is not a string" in refusal(model, ModelFileError)


def test_a_text_of_more_than_64_mib_is_refused(model: Path) -> None:
    with (model / "config.json").open("r+b") as file:
        file.truncate((64 << 20) + 1)  # sparse: takes no disk
    assert "larger than 67108864 bytes" in refusal(model, ModelFileError)


AUDIT = """
import sys
home = sys.argv[1]
opened = set()
def hook(event, args):
    if event == "open" and isinstance(args[0], str) and sys.argv[2] in args[0]:
        opened.add(args[0])
    if event in ("exec", "compile") and home in str(args):
        raise SystemExit(f"{event} {args}")
from lite_llama.checkpoint.reader import open_checkpoint
sys.addaudithook(hook)
open_checkpoint(home)
assert not [m for m in sys.modules.values() if home in str(getattr(m, "__file__", ""))]
print(*sorted(opened), sep="\\n")
"""


def test_only_the_files_a_model_needs_are_opened_and_none_is_run(model: Path) -> None:
    for name in ("modeling_llama.py", "__init__.py", "config.py", "safetensors.py"):
        (model / name).write_text("raise SystemExit('imported')")
    for name in ("pytorch_model.bin", "tokenizer.pkl", "training_args.bin"):
        (model / name).write_bytes(b"\x80\x04.")
    (model / "tokenizer.json").write_text("{}")
    result = subprocess.run(
        [sys.executable, "-c", AUDIT, str(model), str(model.parent)],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        check=False,
    )
    assert result.returncode == 0, result.stderr
    expected = [str(model / "config.json"), str(model / "model.safetensors")]
    assert result.stdout.split() == expected
