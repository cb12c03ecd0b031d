"""Oracle: a literal port of llama.cpp's llm_tokenizer_spm_session (src/llama-vocab.cpp)."""

import heapq

from tests.text.bpe_oracle import user_defined_pattern


class SpmOracle:
    def __init__(self, metadata: dict) -> None:
        tokens = metadata["tokenizer.ggml.tokens"]
        types = metadata["tokenizer.ggml.token_type"]
        self.scores = metadata["tokenizer.ggml.scores"]
        self.byte_ids = {int(t[3:5], 16): i for i, t in enumerate(tokens) if types[i] == 6}
        self.ids = {t: i for i, t in enumerate(tokens)}
        self.user_defined = user_defined_pattern(metadata)

    def encode(self, text: str) -> list[int]:
        """The ids of text in which control tokens are plain characters, without bos."""
        ids: list[int] = []
        for part in self.user_defined.split(text):
            ids += (
                [self.ids[part]] if self.user_defined.fullmatch(part) else self.encode_plain(part)
            )
        return ids

    def encode_plain(self, text: str) -> list[int]:
        symbols: list[str] = list((" " + text).replace(" ", "▁")) if text else []
        before = list(range(-1, len(symbols) - 1))
        after = [*range(1, len(symbols)), -1]
        queue: list[tuple[float, int, int, int]] = []

        def add(left: int, right: int) -> None:
            if left == -1 or right == -1:
                return
            joined = symbols[left] + symbols[right]
            token = self.ids.get(joined)
            if token is not None:
                heapq.heappush(queue, (-self.scores[token], left, right, len(joined)))

        for index in range(1, len(symbols)):
            add(index - 1, index)
        while queue:
            _, left, right, size = heapq.heappop(queue)
            if not symbols[left] or not symbols[right]:
                continue
            if len(symbols[left]) + len(symbols[right]) != size:
                continue
            symbols[left] += symbols[right]
            symbols[right] = ""
            after[left] = after[right]
            if after[right] >= 0:
                before[after[right]] = left
            add(before[left], left)
            add(left, after[left])
        ids: list[int] = []
        index = 0 if symbols else -1
        while index != -1:
            token = self.ids.get(symbols[index])
            ids += [self.byte_ids[b] for b in symbols[index].encode()] if token is None else [token]
            index = after[index]
        return ids
