"""Oracle: byte-level BPE in plain Python, with the `regex` module for the patterns.

It follows llama.cpp's llm_tokenizer_bpe_session (src/llama-vocab.cpp) and shares nothing with the
`tokenizers` library.
"""

import itertools

import regex

from lite_llama.text.pre_tokenizers import PRE_TOKENIZERS


def byte_alphabet() -> dict[int, str]:
    """openai/gpt-2, encoder.py, bytes_to_unicode."""
    kept = [*range(ord("!"), ord("~") + 1), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    alphabet = {byte: chr(byte) for byte in kept}
    for byte in range(256):
        if byte not in alphabet:
            alphabet[byte] = chr(256 + len(alphabet) - len(kept))
    return alphabet


class BpeOracle:
    def __init__(self, metadata: dict) -> None:
        pre = PRE_TOKENIZERS[metadata["tokenizer.ggml.pre"]]
        self.patterns = [regex.compile(pattern) for pattern in pre.patterns]
        self.whole_words = pre.whole_words
        self.ids = {token: i for i, token in enumerate(metadata["tokenizer.ggml.tokens"])}
        self.ranks = {
            tuple(merge.split(" ")): i for i, merge in enumerate(metadata["tokenizer.ggml.merges"])
        }
        self.alphabet = byte_alphabet()
        self.user_defined = user_defined_pattern(metadata)

    def encode(self, text: str) -> list[int]:
        """The ids of text in which control tokens are plain characters."""
        ids: list[int] = []
        for part in self.user_defined.split(text):
            ids += (
                [self.ids[part]] if self.user_defined.fullmatch(part) else self.encode_plain(part)
            )
        return ids

    def encode_plain(self, text: str) -> list[int]:
        words = [text]
        for pattern in self.patterns:
            words = [part for word in words for part in cut(pattern, word)]
        return [index for word in words for index in self.encode_word(word)]

    def encode_word(self, word: str) -> list[int]:
        spelled = "".join(self.alphabet[byte] for byte in word.encode())
        if self.whole_words and spelled in self.ids:
            return [self.ids[spelled]]
        # Bytes without a token are left out before merging, as the models' own tokenizers do.
        symbols = [symbol for symbol in spelled if symbol in self.ids]
        while True:
            pairs = [self.ranks.get(pair, 1 << 30) for pair in itertools.pairwise(symbols)]
            if not pairs or min(pairs) == 1 << 30:
                return [self.ids[symbol] for symbol in symbols]
            at = pairs.index(min(pairs))
            symbols[at : at + 2] = [symbols[at] + symbols[at + 1]]


def user_defined_pattern(metadata: dict) -> regex.Pattern:
    """User-defined tokens are found before anything else, the longest first."""
    pairs = zip(
        metadata["tokenizer.ggml.tokens"], metadata["tokenizer.ggml.token_type"], strict=True
    )
    tokens = sorted((token for token, kind in pairs if kind == 4), key=len, reverse=True)
    return regex.compile("(" + "|".join(map(regex.escape, tokens)) + ")" if tokens else "((?!))")


def cut(pattern: regex.Pattern, word: str) -> list[str]:
    parts, end = [], 0
    for match in pattern.finditer(word):
        parts += [word[end : match.start()], match[0]]
        end = match.end()
    return [part for part in [*parts, word[end:]] if part]
