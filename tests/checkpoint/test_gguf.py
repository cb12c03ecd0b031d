"""GGUF reading: as gguf-py reads sound files; each broken one refused in one typed line."""

import json
import subprocess
import sys
import time
from pathlib import Path

import gguf
import numpy as np
import pytest
import torch
from gguf import quants

from lite_llama.checkpoint.gguf import TENSOR_TYPES, read_gguf
from lite_llama.checkpoint.reader import open_checkpoint
from lite_llama.errors import ModelFileError, UnsupportedModel
from lite_llama.formats import registry
from tests.checkpoint import gguf_writer as w
from tests.checkpoint.gguf_writer import Entry, small_model


@pytest.fixture
def write(tmp_path: Path):
    def write_file(data: bytes) -> Path:
        path = tmp_path / "model.gguf"
        path.write_bytes(data)
        return path

    return write_file


def refusal(path: Path, error: type[ModelFileError] = ModelFileError) -> str:
    with pytest.raises(ModelFileError) as caught:
        read_gguf(path)
    assert type(caught.value) is error
    message = str(caught.value)
    assert "\n" not in message
    assert message.startswith(f"{path}: ")
    assert len(message) < 500
    return message


# Sound files


def test_the_default_model_reads_as_gguf_py_reads_it(smollm2_path: Path) -> None:
    checkpoint = open_checkpoint(smollm2_path)
    oracle = gguf.GGUFReader(smollm2_path)
    assert checkpoint.kind == "gguf"
    assert list(checkpoint.tensors) == [tensor.name for tensor in oracle.tensors]
    assert len(checkpoint.tensors) == 272
    for expected in oracle.tensors:
        tensor = checkpoint.tensors[expected.name]
        assert tensor.format == expected.tensor_type.name
        assert tensor.shape == tuple(reversed(expected.shape.tolist()))
        assert np.array_equal(tensor.data, expected.data.view(np.uint8).reshape(-1))
    for name in ("token_embd.weight", "blk.7.ffn_down.weight", "blk.29.attn_k.weight",
                 "output_norm.weight"):  # fmt: skip
        expected = next(tensor for tensor in oracle.tensors if tensor.name == name)
        values = quants.dequantize(expected.data, expected.tensor_type)
        assert torch.equal(registry.dequantize(checkpoint.tensors[name]), torch.from_numpy(values))
    fields = {k: f for k, f in oracle.fields.items() if not k.startswith("GGUF.")}
    assert list(checkpoint.metadata) == list(fields)
    for name, field in fields.items():
        value = checkpoint.metadata[name]
        assert (value.tolist() if isinstance(value, np.ndarray) else value) == field.contents()
    assert checkpoint.chat_template == fields["tokenizer.chat_template"].contents()


def test_every_kind_of_value_that_gguf_py_writes_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "values.gguf"
    writer = gguf.GGUFWriter(path, "llama")
    numbers = {
        "uint8": 255, "int8": -128, "uint16": 65535, "int16": -32768, "uint32": 2**32 - 1,
        "int32": -(2**31), "uint64": 2**64 - 1, "int64": -(2**63), "float32": 0.5, "float64": 1e300,
    }  # fmt: skip
    for kind, value in numbers.items():
        getattr(writer, f"add_{kind}")(kind, value)
    writer.add_bool("yes", val=True)
    writer.add_string("text", "naïve\n\0")
    writer.add_array("strings", ["a", "ß", "longer"])
    writer.add_array("ints", [1, -2, 3])
    writer.add_array("floats", [0.5, -0.25])
    writer.add_array("bools", [True, False])
    writer.add_tensor("t", np.arange(6, dtype=np.float16).reshape(2, 3))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    metadata, tensors = read_gguf(path)
    assert {kind: metadata[kind] for kind in numbers} == numbers
    assert metadata["yes"] is True
    assert metadata["text"] == "naïve\n\0"
    assert metadata["strings"] == ["a", "ß", "longer"]
    assert metadata["ints"].tolist() == [1, -2, 3]
    assert metadata["floats"].tolist() == [0.5, -0.25]
    assert metadata["bools"].tolist() == [True, False]
    assert tensors["t"].shape == (2, 3)
    assert registry.dequantize(tensors["t"]).tolist() == [[0, 1, 2], [3, 4, 5]]


def test_tensors_are_read_only_views_on_the_mapped_file(write) -> None:
    path = write(small_model(data=bytes(range(96))))
    _, tensors = read_gguf(path)
    norm = tensors["output_norm.weight"]
    assert norm.data.tolist() == list(range(64, 80))
    assert not norm.data.flags.writeable
    with path.open("r+b") as file:  # a view on the file sees the change, a copy would not
        file.seek(-32, 2)
        file.write(b"\xff")
    assert norm.data[0] == 255


def test_version_2_reads_like_version_3(write) -> None:
    data = small_model()
    version_2 = data[:4] + w.u32(2) + data[8:]
    assert list(read_gguf(write(version_2))[1]) == ["token_embd.weight", "output_norm.weight"]


def test_the_files_own_alignment_moves_the_data(write) -> None:
    entries = [Entry("a", (2,), 64)]
    data = w.build([w.u32_key("general.alignment", 64)], entries, b"")
    data += bytes(-len(data) % 64) + bytes(64) + b"\0\0\x80?\0\0\0@"
    assert registry.dequantize(read_gguf(write(data))[1]["a"]).tolist() == [1.0, 2.0]


def test_every_type_id_has_the_name_that_gguf_py_gives_it() -> None:
    for expected in gguf.GGMLQuantizationType:
        assert TENSOR_TYPES[expected.value] == expected.name


def test_a_vocabulary_of_152k_tokens_opens_in_half_a_second(write) -> None:
    num_tokens, num_merges = 151_936, 151_387
    tokens = [w.string(f"Ġtoken{index}") for index in range(num_tokens)]
    keys = [
        w.array_key("tokenizer.ggml.tokens", w.STRING, tokens),
        w.array_key("tokenizer.ggml.scores", w.F32, [bytes(4)] * num_tokens),
        w.array_key("tokenizer.ggml.token_type", w.U32, [w.u32(1)] * num_tokens),
        w.array_key("tokenizer.ggml.merges", w.STRING, [w.string("Ġto ken")] * num_merges),
    ]
    path = write(w.build(keys, [], b""))
    seconds = []
    for _ in range(3):
        start = time.process_time()
        metadata, _ = read_gguf(path)
        seconds.append(time.process_time() - start)
    assert metadata["tokenizer.ggml.tokens"][-1] == f"Ġtoken{num_tokens - 1}"
    assert metadata["tokenizer.ggml.token_type"].sum() == num_tokens
    assert min(seconds) < 0.5


# Broken files

HUGE = 2**63
EMBEDDING = Entry("token_embd.weight", (4, 3))

BROKEN_TENSORS = {
    "offset past the end": (Entry("t", (4,), 4096), "tensor 't' ends at byte 4112 of 96"),
    "end past the end": (Entry("t", (17,), 32), "tensor 't' ends at byte 100 of 96"),
    "huge offset": (Entry("t", (4,), HUGE), f"tensor 't' ends at byte {HUGE + 16} of 96"),
    "unaligned offset": (Entry("t", (4,), 33), "tensor 't' starts at 33, no multiple of"),
    "overlap": (Entry("t", (4,), 32), "tensors 'token_embd.weight' and 't' overlap at byte 32"),
    "same place": (Entry("t", (4,), 0), "tensors 't' and 'token_embd.weight' overlap at byte 0"),
    "5 dimensions": (Entry("t", (1,) * 5, 64), "tensor 't' has 5 dimensions"),
    "no dimension": (Entry("t", (), 64), "tensor 't' has 0 dimensions"),
    "2^32 - 1 dimensions": (Entry("t", (4,), 64, num_dims=2**32 - 1), "'t' has 4294967295 dim"),
    "dimension 0": (Entry("t", (4, 0), 64), "tensor 't' has dimensions [4, 0]"),
    "huge product": (Entry("t", (2**32, 2**32), 64), "tensor 't' has dimensions [4294967296"),
    "huge dimension": (Entry("t", (HUGE,), 64), f"tensor 't' has dimensions [{HUGE}]"),
    "huge but allowed": (Entry("t", (HUGE - 1,), 64), "tensor 't' ends at byte 36893488147419103"),
    "type 255": (Entry("t", (4,), 64, 255), "tensor 't' has unknown type 255, limit 41"),
    "split block": (Entry("t", (48,), 64, 2), "tensor 't' has rows of 48 values, no multiple of"),
    "duplicate": (EMBEDDING, "tensor 'token_embd.weight' appears twice"),
    "control characters": (Entry("a\n\x1b[31m", (1,), 1), r"tensor 'a\n\x1b[31m' starts at 1"),
    "long name": (Entry("n" * 9999, (1,), 1), "n..."),
}


@pytest.mark.parametrize("case", BROKEN_TENSORS)
def test_a_broken_tensor_entry_is_refused_by_name(case: str, write) -> None:
    entry, message = BROKEN_TENSORS[case]
    assert message in refusal(write(small_model(entries=[EMBEDDING, entry])))


@pytest.mark.parametrize("name", ["IQ2_XXS", "F64", "Q8_K", "MXFP4"])
def test_a_known_type_without_decoder_is_refused_as_unsupported(name: str, write) -> None:
    entry = Entry("blk.0.ffn_up.weight", (256,), 0, TENSOR_TYPES.index(name))
    message = refusal(write(small_model(entries=[entry])), UnsupportedModel)
    assert f"tensor 'blk.0.ffn_up.weight' has type {name}" in message


BROKEN_KEYS = {
    "alignment 0": (w.u32_key("general.alignment", 0), "'general.alignment' is '0'"),
    "alignment 3": (w.u32_key("general.alignment", 3), "'general.alignment' is '3'"),
    "alignment 4": (w.u32_key("general.alignment", 4), "'general.alignment' is '4'"),
    "alignment 2^63": (
        w.key("general.alignment", w.U64, w.u64(HUGE)),
        f"'general.alignment' is '{HUGE}'",
    ),
    "alignment true": (w.key("general.alignment", w.BOOL, b"\1"), "'general.alignment' is 'True'"),
    "alignment text": (w.string_key("general.alignment", "32"), "'general.alignment' is '32'"),
    "duplicate key": (
        w.u32_key("general.architecture", 1),
        "key 'general.architecture' appears twice",
    ),
    "unknown type": (w.key("k", 13, bytes(8)), "key 'k' has unknown type 13"),
    "unknown element type": (w.key("k", w.ARRAY, w.u32(13) + w.u64(0)), "key 'k' has unknown"),
    "boolean 2": (w.key("k", w.BOOL, b"\2"), "key 'k' holds booleans other than 0 and 1"),
    "boolean array": (w.array_key("k", w.BOOL, [b"\0", b"\2"]), "key 'k' holds booleans"),
    "string not UTF-8": (w.key("k", w.STRING, w.string(b"\xff")), "key 'k' at byte"),
    "key not UTF-8": (w.string(b"\xff") + w.u32(w.U32) + bytes(4), "name of key 4"),
    "strings not UTF-8": (
        w.array_key("k", w.STRING, [w.string("a"), w.string(b"\xc3")]),
        "key 'k'[1] is not UTF-8",
    ),
    "string length 2^63": (
        w.key("k", w.STRING, w.u64(HUGE)),
        f"key 'k' needs {HUGE} bytes",
    ),
    "key length 2^63": (w.u64(HUGE) + bytes(16), f"name of key 4 needs {HUGE} bytes"),
    "element length 2^64 - 1": (w.array_key("k", w.STRING, [w.u64(2**64 - 1)]), "key 'k'[0] ends"),
    "2^63 numbers": (w.key("k", w.ARRAY, w.u32(w.F32) + w.u64(HUGE)), f"'k' needs {4 * HUGE}"),
    "2^63 strings": (w.key("k", w.ARRAY, w.u32(w.STRING) + w.u64(HUGE)), f"'k' has {HUGE} str"),
    "more strings than given": (
        w.key("k", w.ARRAY, w.u32(w.STRING) + w.u64(12) + w.string("x" * 90)),
        "key 'k'[",  # the count alone would fit
    ),
    "bos past the vocabulary": (
        w.u32_key("tokenizer.ggml.bos_token_id", 3),
        "key 'tokenizer.ggml.bos_token_id' is '3', an id below 3",
    ),
    "eos past the vocabulary": (
        w.u32_key("tokenizer.ggml.eos_token_id", 2**32 - 1),
        "key 'tokenizer.ggml.eos_token_id' is '4294967295'",
    ),
    "eos is text": (
        w.string_key("tokenizer.ggml.eos_token_id", "</s>"),
        "key 'tokenizer.ggml.eos_token_id' is '</s>'",
    ),
    "token types of another length": (
        w.array_key("tokenizer.ggml.token_type", w.U32, [w.u32(1)] * 2),
        "key 'tokenizer.ggml.token_type' has shape (2,) for 3 tokens",
    ),
}


@pytest.mark.parametrize("case", BROKEN_KEYS)
def test_a_broken_key_is_refused_by_name(case: str, write) -> None:
    key, message = BROKEN_KEYS[case]
    entries = [EMBEDDING] if case != "more strings than given" else []
    data = bytes(96) if entries else b""
    assert message in refusal(write(small_model(key, entries=entries, data=data)))


def test_arrays_of_arrays_are_refused_however_deep(write) -> None:
    nested = w.key("k", w.ARRAY, (w.u32(w.ARRAY) + w.u64(1)) * 50_000)
    assert "key 'k' is an array of arrays" in refusal(write(small_model(nested)), UnsupportedModel)


@pytest.mark.parametrize("name", ["token_embd.weight", "output.weight"])
def test_a_vocabulary_that_differs_from_the_embedding_is_refused(name: str, write) -> None:
    message = refusal(write(small_model(entries=[Entry(name, (4, 5))])))
    assert f"tensor '{name}' has 5 rows for 3 tokens" in message


def test_tokens_that_are_no_strings_are_refused(write) -> None:
    key = w.array_key("tokenizer.ggml.tokens", w.U32, [w.u32(0)])
    assert "'tokenizer.ggml.tokens' is not" in refusal(write(w.build([key], [], b"")))


@pytest.mark.parametrize(("num_keys", "num_entries"), [(HUGE, 0), (0, HUGE), (0, 2**64 - 1)])
def test_counts_beyond_the_file_are_refused(num_keys: int, num_entries: int, write) -> None:
    data = w.build([], [], bytes(64), num_keys=num_keys, num_entries=num_entries)
    assert f"tensor count {num_entries} and key count {num_keys} do not" in refusal(write(data))


@pytest.mark.parametrize(
    ("start", "message", "error"),
    [
        (b"GGML" + w.u32(3), "starts with b'GGML'", ModelFileError),
        (b"PK\3\4" + w.u32(3), r"starts with b'PK\x03\x04'", ModelFileError),
        (b"GGUF" + w.u32(1), "version 1 is not supported", UnsupportedModel),
        (b"GGUF" + w.u32(4), "version 4 is not supported", UnsupportedModel),
        (b"GGUF\0\0\0\3", "big-endian", UnsupportedModel),
    ],
)
def test_other_files_and_versions_are_refused(start, message, error, write) -> None:
    assert message in refusal(write(start + small_model()[8:]), error)


def test_a_file_cut_at_any_byte_is_refused(write) -> None:
    data = small_model(w.u32_key("tokenizer.ggml.bos_token_id", 1))[:-16]  # ends with the norm
    assert len(read_gguf(write(data))[1]) == 2
    for length in range(1, len(data)):
        refusal(write(data[:length]))


def test_twenty_thousand_mutants_raise_nothing_but_the_typed_error(tmp_path: Path) -> None:
    script = Path(__file__).with_name("fuzz_gguf.py")
    result = subprocess.run(
        [sys.executable, str(script), str(tmp_path), "20000"],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parents[2],
        timeout=120,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-2000:]
    report = json.loads(result.stdout)
    assert report["refused"] + report["accepted"] == 20_000
    assert report["refused"] > 5_000
    assert report["accepted"] > 100
    assert report["grown_mb"] < 100
