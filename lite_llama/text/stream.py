"""Text as it is generated: token ids to final text, and the search for stop strings in it.

Both take their input in pieces and give the same text as for the whole at once, in linear time.
"""

import codecs
from collections.abc import Sequence

from lite_llama.errors import RequestError
from lite_llama.text.tokenizer import Tokenizer


class IncrementalDetokenizer:
    """Decodes one sequence of ids piece by piece.

    The pieces, joined, are `tokenizer.decode` of all the ids. `continues_text=True` keeps the
    leading space that SentencePiece's `decode` drops: for ids that go on with a prompt's text.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        skip_special_tokens: bool = True,
        continues_text: bool = False,
    ) -> None:
        self._tokenizer = tokenizer
        self._skip_special_tokens = skip_special_tokens
        self._utf8 = codecs.getincrementaldecoder("utf-8")("replace")
        self._drops_space = tokenizer.drops_leading_space and not continues_text

    def push(self, ids: Sequence[int]) -> str:
        """Return the text that `ids` add; bytes of an unfinished character are held back."""
        data = self._tokenizer.join_bytes(ids, skip_special_tokens=self._skip_special_tokens)
        if self._drops_space and data:
            data = data.removeprefix(b" ")
            self._drops_space = False
        return self._utf8.decode(data)

    def finish(self) -> str:
        """Return what was held back: U+FFFD for a character that never ended."""
        return self._utf8.decode(b"", final=True)


class StopStrings:
    """Cuts a text before the first stop string that is complete in it.

    Of several that end at the same character the longest counts. With `include_stop=True` the cut
    is behind the stop string. Raises RequestError for an empty stop string.
    """

    def __init__(self, stops: Sequence[str], *, include_stop: bool = False) -> None:
        if not all(stops):
            raise RequestError("stop holds an empty string; leave it out", param="stop")
        self._stops = list(stops)
        self._fallbacks = [_fallbacks(stop) for stop in stops]
        # How many characters of each stop string the text ends with.
        self._matched = [0] * len(stops)
        self._include_stop = include_stop
        self._held = ""
        self._stopped = False
        self.matched: str | None = None  # the stop string that was found

    def push(self, text: str) -> tuple[str, bool]:
        """Return the text that can no longer become part of a stop string, and whether one was
        found: then the text before it, and nothing from then on."""
        if not self._stops:
            return text, False
        if self._stopped:
            return "", True
        pending = self._held + text
        for end, char in enumerate(text, start=len(self._held) + 1):
            stop_length = self._advance(char)
            if stop_length:
                self._stopped, self._held = True, ""
                self.matched = pending[end - stop_length : end]
                return pending[: end if self._include_stop else end - stop_length], True
        safe = len(pending) - max(self._matched, default=0)
        self._held = pending[safe:]
        return pending[:safe], False

    def finish(self) -> str:
        """Return what was held back, when no more text comes."""
        held, self._held = self._held, ""
        return held

    def _advance(self, char: str) -> int:
        """Read one character; the length of the longest stop string it completes, or 0."""
        longest = 0
        for index, stop in enumerate(self._stops):
            matched = self._matched[index]
            while matched and stop[matched] != char:
                matched = self._fallbacks[index][matched]
            if stop[matched] == char:
                matched += 1
            self._matched[index] = matched
            if matched == len(stop):
                longest = max(longest, matched)
        return longest


def _fallbacks(stop: str) -> list[int]:
    """Knuth-Morris-Pratt: for n matched characters, the longest proper prefix that also ends
    them."""
    fallbacks = [0, 0]
    for char in stop[1:]:
        matched = fallbacks[-1]
        while matched and stop[matched] != char:
            matched = fallbacks[matched]
        fallbacks.append(matched + 1 if stop[matched] == char else 0)
    return fallbacks
