"""Text to token ids and back, for a Hugging Face directory or for the metadata of a GGUF file.

Encoding is done by the `tokenizers` library. Decoding is ours, because streaming needs it piece
by piece: every token stands for fixed bytes (`token_bytes`), a text is their concatenation read
as UTF-8, and bytes that are not UTF-8 become U+FFFD.
"""

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken, Regex, models, normalizers
from tokenizers import pre_tokenizers as splitters
from tokenizers.processors import TemplateProcessing

from lite_llama.errors import ModelFileError, RequestError, UnsupportedModel
from lite_llama.text.pre_tokenizers import PRE_TOKENIZERS

# Tokens that end an answer whatever the file calls its eos, where they are special tokens
# (after llama.cpp's list, src/llama-vocab.cpp).
_END_NAMES = frozenset(
    {"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end_of_text|>", "<|endoftext|>", "<|end|>"}
    | {"<|return|>", "<|call|>", "<end_of_turn>", "<end_of_utterance>", "<EOT>"}
)
# gpt-oss ends a message with <|end|>, and an answer, of several messages, with <|return|>.
_ANSWER_END, _MESSAGE_END = "<|return|>", "<|end|>"

# Tokens that a chat format is built from, though some files do not mark them special
# (llama.cpp's convert_hf_to_gguf.py, does_token_look_special).
_LOOKS_LIKE_CONTROL = re.compile("<\\|.*\\|>|<\uff5c.*\uff5c>", re.DOTALL)

_UNKNOWN, _CONTROL, _USER_DEFINED, _BYTE = 2, 3, 4, 6  # gguf.constants.TokenType
_SPACE = "▁"
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")


def _byte_level_table() -> dict[int, int | str]:
    """Map GPT-2's byte alphabet to code points 0..255 (openai/gpt-2, encoder.py,
    bytes_to_unicode), and the code points below 256 that are not in it to one above."""
    printable = {*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)}
    others = [byte for byte in range(256) if byte not in printable]
    table: dict[int, int | str] = dict.fromkeys(others, "\uffff")
    table.update({256 + index: byte for index, byte in enumerate(others)})
    return table


_BYTE_LEVEL_TABLE = _byte_level_table()


def _byte_level_bytes(text: str) -> bytes:
    """The bytes of a byte-level BPE token; one with characters outside the alphabet is text
    (as in the `tokenizers` library's ByteLevel decoder)."""
    try:
        return text.translate(_BYTE_LEVEL_TABLE).encode("latin-1")
    except UnicodeEncodeError:
        return text.encode()


def _sentencepiece_bytes(text: str) -> bytes:
    """The bytes of a SentencePiece token: `▁` is a space, `<0xE9>` the byte E9."""
    byte = _BYTE_TOKEN.fullmatch(text)
    return bytes([int(byte[1], 16)]) if byte else text.replace(_SPACE, " ").encode()


class Tokenizer:
    """Encodes and decodes text; immutable, and safe to share between threads.

    `vocab_size` is the number of tokens, `bos_id` the start token if the file names one,
    `eos_ids` every token that ends an answer, `add_bos` whether `encode` starts with `bos_id`,
    and `drops_leading_space` whether `decode` drops one leading space (SentencePiece put it there).
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        bos: str | None,
        eos: Iterable[str],
        to_bytes: Callable[[str], bytes],
        drops_leading_space: bool,
    ) -> None:
        added: dict[int, AddedToken] = backend.get_added_tokens_decoder()
        size = max(backend.get_vocab_size(), max(added, default=-1) + 1)
        self._backend = backend
        self._plain_backend = _ignoring_control_tokens(backend, added)
        self._texts: list[str] = [backend.id_to_token(index) or "" for index in range(size)]
        self._special_ids = frozenset(index for index, token in added.items() if token.special)
        self._bytes = [to_bytes(text) for text in self._texts]
        if to_bytes is _byte_level_bytes:
            # Added tokens are not spelled in the byte alphabet: DeepSeek's "ö" is the letter.
            for index in added:
                self._bytes[index] = self._texts[index].encode()
        self._shown = self._bytes.copy()
        for index in self._special_ids:
            self._shown[index] = b""
        self.vocab_size = size
        eos = list(eos)
        self.bos_token = bos or ""
        self.eos_token = eos[0] if eos else ""
        self.bos_id: int | None = backend.token_to_id(bos) if bos is not None else None
        self.eos_ids = _eos_ids(backend, eos, added)
        self.add_bos = self.bos_id is not None and self.encode("")[:1] == [self.bos_id]
        self.drops_leading_space = drops_leading_space

    @classmethod
    def from_hf(cls, directory: Path) -> "Tokenizer":
        """Read `tokenizer.json`, and `tokenizer_config.json` where there is one.

        Raises ModelFileError if a file is missing or broken, UnsupportedModel if the tokens are
        neither byte-level nor SentencePiece's.
        """
        path = directory / "tokenizer.json"
        if not path.is_file():
            raise ModelFileError(
                f"{directory} has no tokenizer.json; tokenizer.model alone is not supported:"
                " convert it with transformers (AutoTokenizer.from_pretrained, save_pretrained)"
            )
        try:
            backend = tokenizers.Tokenizer.from_file(str(path))
        except Exception as error:
            raise ModelFileError(f"{path} is not a usable tokenizer: {error}") from error
        backend.no_truncation()
        backend.no_padding()
        config = _read_json(directory / "special_tokens_map.json")
        config |= _read_json(directory / "tokenizer_config.json")
        bos, eos = _token_name(config.get("bos_token")), _token_name(config.get("eos_token"))
        _add_listed_tokens(backend, config.get("added_tokens_decoder"))
        if "add_bos_token" in config or "add_eos_token" in config:
            # As transformers does: what the config says replaces the file's post-processor.
            backend.post_processor = _frame(
                backend,
                bos if config.get("add_bos_token") else None,
                eos if config.get("add_eos_token") else None,
            )
        to_bytes, drops_leading_space = _read_decoder(backend, path)
        return cls(
            backend,
            bos=bos,
            eos=[eos] if eos else [],
            to_bytes=to_bytes,
            drops_leading_space=drops_leading_space,
        )

    @classmethod
    def from_gguf(cls, metadata: Mapping[str, Any]) -> "Tokenizer":
        """Build from the `tokenizer.ggml.*` keys of a GGUF file (lists or arrays, str, int, bool).

        Raises ModelFileError if keys are missing or contradict each other, UnsupportedModel for a
        tokenizer model or pre-tokenizer that is not implemented.
        """
        vocabulary = _GgufVocabulary(metadata)
        model = metadata.get("tokenizer.ggml.model")
        if model == "gpt2":
            backend, add_bos = _build_byte_level(vocabulary)
        elif model == "llama":
            backend, add_bos = _build_sentencepiece(vocabulary), True
        else:
            raise UnsupportedModel(f"tokenizer.ggml.model is {model!r}; supported: gpt2, llama")
        backend.add_tokens(list(vocabulary.added_tokens()))
        bos, eos = vocabulary.named("bos"), vocabulary.named("eos")
        backend.post_processor = _frame(
            backend,
            bos if vocabulary.flag("add_bos_token", default=add_bos) else None,
            eos if vocabulary.flag("add_eos_token", default=False) else None,
        )
        ends = (eos, vocabulary.named("eot"), vocabulary.named("eom"))
        spm = model == "llama"
        return cls(
            backend,
            bos=bos,
            eos=[name for name in ends if name is not None],
            to_bytes=_sentencepiece_bytes if spm else _byte_level_bytes,
            drops_leading_space=spm and vocabulary.flag("add_space_prefix", default=True),
        )

    def encode(
        self, text: str, *, add_special_tokens: bool = True, parse_special: bool = True
    ) -> list[int]:
        """Return the token ids of `text`.

        With `parse_special=False`, control tokens written out in the text (`<|im_end|>`) are
        plain characters: use it for text that a user wrote. Bytes for which a byte-level
        vocabulary has no token are left out (SmolLM2 lacks six control characters and the
        unassigned planes from U+40000 on). Raises RequestError for a lone surrogate.
        """
        backend = self._backend if parse_special else self._plain_backend
        try:
            # The batch call, unlike `encode`, does not compute offsets: 1.0-2.5 times as fast.
            [encoding] = backend.encode_batch_fast([text], add_special_tokens=add_special_tokens)
        except TypeError as error:
            raise RequestError("the text holds a lone surrogate: send valid Unicode") from error
        ids: list[int] = encoding.ids
        return ids

    def to_json(self) -> str:
        """The tokenizer.json with which the `tokenizers` library encodes as `encode` does."""
        form: str = self._backend.to_str()
        return form

    def decode(self, ids: Iterable[int], *, skip_special_tokens: bool = True) -> str:
        """Return the text of `ids`; ids outside the vocabulary stand for nothing."""
        known = [index for index in ids if index >= 0]
        data = self.join_bytes(known, skip_special_tokens=skip_special_tokens)
        if self.drops_leading_space:
            data = data.removeprefix(b" ")
        return data.decode("utf-8", "replace")

    def join_bytes(self, ids: Sequence[int], *, skip_special_tokens: bool) -> bytes:
        """The bytes that these tokens stand for, one after the other; no id is negative."""
        known = self._shown if skip_special_tokens else self._bytes
        try:
            return b"".join([known[index] for index in ids])
        except IndexError:
            return b"".join([known[index] for index in ids if index < self.vocab_size])

    def token_text(self, index: int) -> str:
        """The token as its file spells it ("Ġhello", "▁hello"); "" outside the vocabulary."""
        return self._texts[index] if 0 <= index < self.vocab_size else ""

    def token_bytes(self, index: int) -> bytes:
        """The bytes that the token stands for; b"" outside the vocabulary."""
        return self._bytes[index] if 0 <= index < self.vocab_size else b""

    def is_special(self, index: int) -> bool:
        """Whether the token is one that `decode` leaves out by default."""
        return index in self._special_ids


def _ignoring_control_tokens(
    backend: tokenizers.Tokenizer, added: Mapping[int, AddedToken]
) -> tokenizers.Tokenizer:
    """A twin of `backend`, on the same vocabulary, that takes control tokens for plain text."""
    twin = tokenizers.Tokenizer(backend.model)
    if backend.normalizer is not None:
        twin.normalizer = backend.normalizer
    if backend.pre_tokenizer is not None:
        twin.pre_tokenizer = backend.pre_tokenizer
    if backend.post_processor is not None:
        twin.post_processor = backend.post_processor
    tokens = []
    for _, token in sorted(added.items()):
        looks = _LOOKS_LIKE_CONTROL.fullmatch(token.content) is not None
        tokens.append(
            AddedToken(
                token.content,
                single_word=token.single_word,
                lstrip=token.lstrip,
                rstrip=token.rstrip,
                normalized=token.normalized,
                special=token.special or looks,
            )
        )
    twin.add_tokens(tokens)
    twin.encode_special_tokens = True
    return twin


def _eos_ids(
    backend: tokenizers.Tokenizer, named: Iterable[str], added: Mapping[int, AddedToken]
) -> frozenset[int]:
    ends = {index for name in named if (index := backend.token_to_id(name)) is not None}
    special = {token.content: index for index, token in added.items() if token.special}
    names = _END_NAMES - {_MESSAGE_END} if _ANSWER_END in special else _END_NAMES
    return frozenset(ends | {special[name] for name in names & special.keys()})


def _frame(backend: tokenizers.Tokenizer, bos: str | None, eos: str | None) -> TemplateProcessing:
    """A post-processor that puts `bos` before the text and `eos` after it, where they are given."""
    frame = [(name, backend.token_to_id(name)) for name in (bos, eos) if name is not None]
    missing = [name for name, index in frame if index is None]
    if missing:
        raise ModelFileError(
            f"tokenizer: the vocabulary has no token {missing[0]!r}; convert again"
        )
    parts = [*([bos] if bos is not None else []), "$A", *([eos] if eos is not None else [])]
    return TemplateProcessing(single=parts, pair=None, special_tokens=list(dict(frame).items()))


# ---- Hugging Face files ----


def _read_json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_bytes())
    except ValueError as error:
        raise ModelFileError(f"{path} is not JSON: {error}") from error
    if not isinstance(content, dict):
        raise ModelFileError(f"{path} holds {type(content).__name__}, expected an object")
    return content


def _token_name(entry: Any) -> str | None:
    """A token as the config names it: a string, or (older) an object with its content."""
    name = entry.get("content") if isinstance(entry, dict) else entry
    return name if isinstance(name, str) else None


def _add_listed_tokens(backend: tokenizers.Tokenizer, listed: Any) -> None:
    """Add the tokens that only tokenizer_config.json lists, in the order of their ids."""
    if not isinstance(listed, dict):
        return
    for index, entry in sorted(listed.items(), key=lambda item: int(item[0])):
        name = _token_name(entry)
        if name is None or backend.token_to_id(name) is not None:
            continue
        flags = ("single_word", "lstrip", "rstrip", "normalized", "special")
        backend.add_tokens([AddedToken(name, **{flag: bool(entry.get(flag)) for flag in flags})])
        if backend.token_to_id(name) != int(index):
            raise ModelFileError(
                f"tokenizer_config.json gives {name!r} id {index}, but the next free id is"
                f" {backend.token_to_id(name)}; save the tokenizer again with transformers"
            )


def _read_decoder(backend: tokenizers.Tokenizer, path: Path) -> tuple[Callable[[str], bytes], bool]:
    """How the file turns tokens into bytes, and whether it drops one leading space."""
    decoder = json.loads(backend.decoder.__getstate__()) if backend.decoder is not None else {}
    steps = {step["type"]: step for step in decoder.get("decoders", [decoder]) if "type" in step}
    if "ByteLevel" in steps:
        return _byte_level_bytes, False
    if "ByteFallback" in steps and steps.keys() <= {"Replace", "ByteFallback", "Fuse", "Strip"}:
        return _sentencepiece_bytes, steps.get("Strip", {}).get("start", 0) > 0
    raise UnsupportedModel(
        f"{path}: decoder {sorted(steps) or None} is not implemented;"
        " supported: ByteLevel, and SentencePiece's Replace + ByteFallback"
    )


# ---- GGUF metadata ----


class _GgufVocabulary:
    """The `tokenizer.ggml.*` keys, checked."""

    def __init__(self, metadata: Mapping[str, Any]) -> None:
        self._metadata = metadata
        self.pre = metadata.get("tokenizer.ggml.pre")
        tokens = self.entries("tokens")
        self.tokens: list[str] = [token or f"[EMPTY_{index}]" for index, token in enumerate(tokens)]
        self.types: list[int] = self.entries("token_type", length=len(self.tokens))
        self.ids = {token: index for index, token in enumerate(self.tokens)}
        if len(self.ids) != len(self.tokens):
            raise ModelFileError(
                f"tokenizer.ggml.tokens has {len(self.tokens) - len(self.ids)} duplicates;"
                " convert the model again"
            )

    def entries(self, key: str, *, length: int | None = None) -> list[Any]:
        value = self._metadata.get(f"tokenizer.ggml.{key}")
        if value is None or isinstance(value, (str, bytes)) or not isinstance(value, Iterable):
            raise ModelFileError(f"tokenizer.ggml.{key} is missing; convert the model again")
        found = list(value)
        if not found or (length is not None and len(found) != length):
            raise ModelFileError(
                f"tokenizer.ggml.{key} has {len(found)} entries, expected"
                f" {length or 'at least 1'}; convert the model again"
            )
        return found

    def flag(self, key: str, *, default: bool) -> bool:
        return bool(self._metadata.get(f"tokenizer.ggml.{key}", default))

    def named(self, role: str) -> str | None:
        """The token that `tokenizer.ggml.<role>_token_id` points at."""
        key = f"tokenizer.ggml.{role}_token_id"
        index = self._metadata.get(key)
        if index is None:
            return None
        if not 0 <= int(index) < len(self.tokens):
            raise ModelFileError(
                f"{key} is {index}, the vocabulary has {len(self.tokens)} tokens;"
                " convert the model again"
            )
        return self.tokens[int(index)]

    def added_tokens(self) -> Sequence[AddedToken]:
        """Tokens that are found in the text before anything else: control and user-defined."""
        return [
            AddedToken(token, special=kind != _USER_DEFINED, normalized=False)
            for token, kind in zip(self.tokens, self.types, strict=True)
            if kind in (_UNKNOWN, _CONTROL, _USER_DEFINED) or token in _END_NAMES
        ]


def _build_bpe(
    vocabulary: _GgufVocabulary, merges: Sequence[tuple[str, str]], **options: Any
) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer(models.BPE(vocabulary.ids, merges, **options))
    except Exception as error:
        raise ModelFileError(f"tokenizer.ggml.merges cannot be used: {error}") from error


def _build_byte_level(vocabulary: _GgufVocabulary) -> tuple[tokenizers.Tokenizer, bool]:
    """Byte-level BPE (GPT-2's), and whether this kind starts a text with bos by default."""
    pre_tokenizer = PRE_TOKENIZERS.get(str(vocabulary.pre))
    if pre_tokenizer is None:
        known = ", ".join(PRE_TOKENIZERS)
        raise UnsupportedModel(f"tokenizer.ggml.pre is {vocabulary.pre!r}; supported: {known}")
    # A merge is "left right"; a token may begin with a space, hence the search from index 1.
    merges = [
        (merge[:cut], merge[cut + 1 :])
        for merge in vocabulary.entries("merges")
        for cut in (merge.find(" ", 1),)
    ]
    backend = _build_bpe(vocabulary, merges, ignore_merges=pre_tokenizer.whole_words)
    backend.pre_tokenizer = splitters.Sequence(
        [
            *(splitters.Split(Regex(pattern), "isolated") for pattern in pre_tokenizer.patterns),
            splitters.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return backend, pre_tokenizer.add_bos


def _build_sentencepiece(vocabulary: _GgufVocabulary) -> tokenizers.Tokenizer:
    """SentencePiece BPE: of two neighbours, the pair that forms the best-scored token is merged
    first (llama.cpp's llm_tokenizer_spm). That is BPE whose merges are all the ways to cut a
    token in two, ordered by the token's score."""
    scores = vocabulary.entries("scores", length=len(vocabulary.tokens))
    # Control and byte tokens are never built from the letters of a user's text.
    ids = {
        token: index
        for token, index in vocabulary.ids.items()
        if vocabulary.types[index] not in (_UNKNOWN, _CONTROL, _BYTE)
    }
    ranked = sorted(ids, key=lambda token: -scores[ids[token]])
    merges = [
        (token[:cut], token[cut:])
        for token in ranked
        for cut in range(len(token) - 1, 0, -1)
        if token[:cut] in ids and token[cut:] in ids
    ]
    unknown = vocabulary.named("unknown")
    backend = _build_bpe(vocabulary, merges, unk_token=unknown, byte_fallback=True, fuse_unk=True)
    prefix = vocabulary.flag("add_space_prefix", default=True)
    backend.normalizer = normalizers.Sequence(
        [*([normalizers.Prepend(_SPACE)] if prefix else []), normalizers.Replace(" ", _SPACE)]
    )
    return backend
