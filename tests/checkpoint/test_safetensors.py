"""Safetensors reading: what the library writes; each broken file refused in one typed line."""

import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from lite_llama.checkpoint.safetensors import INDEX_NAME, read_safetensors, read_shard
from lite_llama.errors import ModelFileError, ModelNotFound, UnsupportedModel
from lite_llama.formats import registry

TWO = {
    "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]},
    "b": {"dtype": "BF16", "shape": [2, 1], "data_offsets": [8, 12]},
}


def write_raw(path: Path, header: Any, data: bytes = bytes(12), length: int | None = None) -> Path:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    size = len(text) if length is None else length
    path.write_bytes(size.to_bytes(8, "little") + text + data)
    return path


def refusal(call: Any, path: Path, error: type[ModelFileError] = ModelFileError) -> str:
    with pytest.raises(ModelFileError) as caught:
        call(path)
    assert type(caught.value) is error
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 600
    return message


def two_shards(directory: Path, **weight_map: str) -> None:
    save_file({"a": torch.ones(2)}, directory / "x-1.safetensors")
    save_file({"b": torch.zeros(3)}, directory / "x-2.safetensors")
    weight_map = weight_map or {"a": "x-1.safetensors", "b": "x-2.safetensors"}
    (directory / INDEX_NAME).write_text(json.dumps({"weight_map": weight_map}))


# Sound files


def test_a_file_of_the_library_reads_back_bit_for_bit(tmp_path: Path) -> None:
    torch.manual_seed(0)
    saved = {
        "f32": torch.randn(3, 5),
        "f16": torch.randn(7).half(),
        "bf16": torch.randn(2, 3, 4).bfloat16(),
        "f8": torch.randn(6).to(torch.float8_e4m3fn),
        "scalar": torch.tensor(2.5),
        "empty": torch.empty(0, 4),
    }
    save_file(saved, tmp_path / "model.safetensors", metadata={"format": "pt"})
    tensors = read_safetensors(tmp_path)
    assert tensors.keys() == saved.keys()
    for name, expected in saved.items():
        assert tensors[name].shape == tuple(expected.shape)
        assert torch.equal(registry.dequantize(tensors[name]), expected.float())
    assert {tensor.format for tensor in tensors.values()} == {"F32", "F16", "BF16", "F8_E4M3"}


def test_tensors_are_read_only_views_on_the_mapped_file(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "m.safetensors", TWO, bytes(range(12)))
    tensor = read_shard(path)["b"]
    assert tensor.data.tolist() == [8, 9, 10, 11]
    assert not tensor.data.flags.writeable
    with path.open("r+b") as file:
        file.seek(-1, 2)
        file.write(b"\xff")
    assert tensor.data[3] == 255


def test_shards_are_joined_by_their_index(tmp_path: Path) -> None:
    two_shards(tmp_path)
    values = {n: registry.dequantize(t).tolist() for n, t in read_safetensors(tmp_path).items()}
    assert values == {"a": [1, 1], "b": [0, 0, 0]}


def test_the_only_file_is_taken_whatever_its_name(tmp_path: Path) -> None:
    save_file({"a": torch.ones(2)}, tmp_path / "weights.safetensors")
    assert list(read_safetensors(tmp_path)) == ["a"]


def test_the_links_of_a_hugging_face_cache_are_followed(tmp_path: Path) -> None:
    snapshot, blobs = tmp_path / "models--x" / "snapshots" / "abc", tmp_path / "models--x" / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    save_file({"a": torch.ones(2)}, blobs / "0123")
    (snapshot / "model.safetensors").symlink_to("../../blobs/0123")
    assert list(read_safetensors(snapshot)) == ["a"]


# Broken files


def changed(name: str, **fields: Any) -> dict[str, Any]:
    return {**TWO, name: {**TWO[name], **fields}}


BROKEN_ENTRIES = {
    "shape too large": (changed("a", shape=[3]), "tensor 'a' spans 8 bytes, but F32 [3] takes 12"),
    "dtype too large": (changed("b", dtype="F32"), "tensor 'b' spans 4 bytes, but F32"),
    "negative size": (changed("a", shape=[-1, -2]), "tensor 'a' has shape '[-1, -2]'"),
    "size 2^63": (changed("a", shape=[2**63]), "tensor 'a' has shape '[9223372036854775808]'"),
    "huge product": (changed("a", shape=[2**62] * 8), "tensor 'a' spans 8 bytes, but F32"),
    "9 dimensions": (changed("a", shape=[1] * 9), "tensor 'a' has shape"),
    "boolean size": (changed("a", shape=[True, 2]), "tensor 'a' has shape '[True, 2]'"),
    "fraction": (changed("a", shape=[2.0]), "tensor 'a' has shape '[2.0]'"),
    "shape no list": (changed("a", shape="2"), "tensor 'a' has shape '2'"),
    "past the end": (changed("b", data_offsets=[12, 16]), "tensor 'b' ends at byte 16 of 12"),
    "huge offsets": (
        changed("b", data_offsets=[2**62, 2**62 + 4]),
        f"tensor 'b' ends at byte {2**62 + 4} of 12",
    ),
    "overlap": (changed("b", data_offsets=[6, 10]), "tensors 'a' and 'b' overlap at byte 6"),
    "reversed": (changed("b", data_offsets=[12, 8]), "tensor 'b' spans -4 bytes"),
    "negative offset": (changed("b", data_offsets=[-4, 0]), "tensor 'b' has data_offsets"),
    "one offset": (changed("b", data_offsets=[4]), "tensor 'b' has data_offsets '[4]'"),
    "gap": ({"b": {**TWO["b"]}}, "do not cover the 12 bytes of data"),
    "no dtype": ({**TWO, "a": {"shape": [2], "data_offsets": [0, 8]}}, "tensor 'a' needs dtype"),
    "extra field": (changed("a", more=1), "tensor 'a' needs dtype, shape and data_offsets"),
    "no object": ({**TWO, "a": 7}, "tensor 'a' needs dtype"),
    "control characters": ({"a\nb": 7}, r"tensor 'a\nb' needs dtype"),
}


@pytest.mark.parametrize("case", BROKEN_ENTRIES)
def test_a_broken_entry_is_refused_by_name(case: str, tmp_path: Path) -> None:
    header, message = BROKEN_ENTRIES[case]
    path = write_raw(tmp_path / "m.safetensors", header)
    refused = refusal(read_shard, path)
    assert message in refused
    assert refused.startswith(f"{path}: ")


@pytest.mark.parametrize("dtype", ["F64", "I64", "U8", "F8_E5M2", "f32", None, ["F32"]])
def test_a_dtype_without_decoder_is_refused_by_name(dtype: Any, tmp_path: Path) -> None:
    path = write_raw(tmp_path / "m.safetensors", changed("a", dtype=dtype))
    assert "tensor 'a' has dtype " in refusal(read_shard, path, UnsupportedModel)


BROKEN_HEADERS = {
    "longer than the file": (json.dumps(TWO).encode(), 2**63, "said to take 9223372036854775808"),
    "one byte too long": (b"{}", 15, "said to take 15 bytes, limit 14"),
    "not JSON": (b"hello", None, "not valid JSON"),
    "a list": (b"[1]", None, "a JSON object is expected, not list"),
    "not UTF-8": (b'{"\xff": 1}', None, "not UTF-8 at byte 10"),
    "duplicate": (b'{"a": 1, "a": 2}', None, "key 'a' appears twice"),
    "deep": (b'{"a":' + b"[" * 200_000, None, "JSON is nested too deep"),
    "long integer": (b'{"a":' + b"9" * 5000 + b"}", None, "not valid JSON"),
}


@pytest.mark.parametrize("case", BROKEN_HEADERS)
def test_a_broken_header_is_refused(case: str, tmp_path: Path) -> None:
    header, length, message = BROKEN_HEADERS[case]
    path = write_raw(tmp_path / "m.safetensors", header, length=length)
    assert message in refusal(read_shard, path)


def test_a_header_of_more_than_100_mb_is_refused_unread(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "m.safetensors", b"{", length=100_000_001)
    with path.open("r+b") as file:
        file.truncate(200_000_000)  # sparse: takes no disk
    assert "said to take 100000001 bytes, limit 100000000" in refusal(read_shard, path)


def test_a_file_cut_at_any_byte_is_refused(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "m.safetensors", TWO)
    data = path.read_bytes()
    for length in range(len(data)):
        path.write_bytes(data[:length])
        refusal(read_shard, path)


@pytest.mark.parametrize(
    "shard",
    ["../x.safetensors", "/etc/x.safetensors", "sub/x.safetensors", "..\\x.safetensors",
     "x\0.safetensors"],
)  # fmt: skip
def test_a_shard_name_that_is_no_plain_name_is_refused(shard: str, tmp_path: Path) -> None:
    home = tmp_path / "model"
    (home / "sub").mkdir(parents=True)
    for place in (tmp_path, home / "sub"):  # there to be opened, were the name followed
        save_file({"a": torch.ones(2)}, place / "x.safetensors")
    (home / INDEX_NAME).write_text(json.dumps({"weight_map": {"a": shard}}))
    assert f"{shard!r} is not a plain file name" in refusal(read_safetensors, home)


@pytest.mark.parametrize("target", ["../secret.safetensors", "/etc/passwd", "sub/in.safetensors"])
def test_a_link_out_of_the_directory_is_refused(target: str, tmp_path: Path) -> None:
    home = tmp_path / "model"
    (home / "sub").mkdir(parents=True)
    for place in (tmp_path / "secret.safetensors", home / "sub" / "in.safetensors"):
        save_file({"a": torch.ones(2)}, place)
    (home / "model.safetensors").symlink_to(target)
    message = refusal(read_safetensors, home)
    assert message.startswith(f"{home / 'model.safetensors'} links out of its directory")


def test_a_dangling_link_a_pipe_and_an_empty_file_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    path.symlink_to("nowhere")
    assert "dangling link" in refusal(read_safetensors, tmp_path)
    path.unlink()
    os.mkfifo(path)
    assert "not a regular file" in refusal(read_safetensors, tmp_path)
    path.unlink()
    path.touch()
    assert "is empty" in refusal(read_safetensors, tmp_path)


def test_a_tensor_that_the_index_lists_but_no_shard_holds_is_refused(tmp_path: Path) -> None:
    two_shards(tmp_path, a="x-1.safetensors", b="x-2.safetensors", c="x-2.safetensors")
    message = refusal(read_safetensors, tmp_path)
    assert message.startswith(f"{tmp_path / 'x-2.safetensors'}: tensor 'c' of {INDEX_NAME} is not")


def test_a_tensor_that_the_index_does_not_list_is_refused(tmp_path: Path) -> None:
    two_shards(tmp_path, a="x-1.safetensors", c="x-2.safetensors")
    message = refusal(read_safetensors, tmp_path)
    assert f"{INDEX_NAME} does not place tensor 'b' in this file" in message


def test_a_tensor_that_the_index_places_elsewhere_is_refused(tmp_path: Path) -> None:
    two_shards(tmp_path, a="x-2.safetensors", b="x-1.safetensors")
    message = refusal(read_safetensors, tmp_path)
    assert message.startswith(
        f"{tmp_path / 'x-1.safetensors'}: {INDEX_NAME} does not place tensor 'a'"
    )


def test_a_missing_shard_is_not_found(tmp_path: Path) -> None:
    two_shards(tmp_path, a="x-1.safetensors", b="x-3.safetensors")
    message = refusal(read_safetensors, tmp_path, ModelNotFound)
    assert message.startswith(f"{tmp_path / 'x-3.safetensors'} is named in {INDEX_NAME}")


@pytest.mark.parametrize(
    ("index", "message"),
    [
        ("[]", "a JSON object is expected"),
        ("{}", "no object 'weight_map'"),
        ('{"weight_map": []}', "no object 'weight_map'"),
        ('{"weight_map": {"a": 3}}', "tensor 'a' is said to be in '3'"),
        ('{"weight_map": {"a": "x.bin"}}', "tensor 'a' is said to be in 'x.bin'"),
        ('{"weight_map": {"a": "x", "a": "y"}}', "key 'a' appears twice"),
    ],
)
def test_a_broken_index_is_refused(index: str, message: str, tmp_path: Path) -> None:
    (tmp_path / INDEX_NAME).write_text(index)
    refused = refusal(read_safetensors, tmp_path)
    assert message in refused
    assert INDEX_NAME in refused


def test_several_files_without_index_are_refused(tmp_path: Path) -> None:
    two_shards(tmp_path)
    (tmp_path / INDEX_NAME).unlink()
    assert f"2 *.safetensors files but no {INDEX_NAME}" in refusal(read_safetensors, tmp_path)
