"""Captions into tokens: the same ones that the tokenizer gives, in a fraction of its time."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
from open_clip.tokenizer import get_clean_fn

from train.tokenizer import LONGEST_KEPT, BoundedTokenizer

WORDS_KEPT = 1 << 17
"""Some 30 MB. Then all are forgotten: the usual ones are soon back."""


class CaptionTokens:
    """Rows of tokens for captions.

    Of OpenCLIP's own tokenizer, three quarters of the time go into mending text that needs none, and the rest into
    words that came before. It looks at nothing beyond a space, so the tokens of a text are those of its words.
    """

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer = tokenizer
        self._words = _Words(tokenizer) if _goes_by_words(tokenizer) else None

    def __call__(self, captions: list[str]) -> npt.NDArray[np.integer[Any]]:
        """A row for each caption, as long as the tokenizer's context."""
        if self._words is None:
            return np.asarray(self.tokenizer(captions))
        length = self.tokenizer.context_length
        size = 4 * length
        begin, end = _as_bytes([self.tokenizer.sot_token_id]), _as_bytes([self.tokenizer.eot_token_id])
        rows = (begin + self._words.of(caption) + end for caption in captions)
        data = b"".join(row.ljust(size, b"\0") if len(row) <= size else row[: size - 4] + end for row in rows)
        return np.frombuffer(data, "<i4").reshape(-1, length)


class _Words(dict[str, bytes]):
    """The tokens of words, made when they are first asked for. A KeyError if a word means something else alone."""

    def __init__(self, tokenizer: BoundedTokenizer) -> None:
        super().__init__()
        self._tokenizer = tokenizer

    def of(self, text: str) -> bytes:
        """The tokens of a text."""
        if text.isascii() and text.isprintable() and "&" not in text:
            words = text.lower().split()  # all that cleaning does: there is nothing here that it could mend
        else:
            words = self._tokenizer.clean_fn(text).split(" ")
        try:
            return b"".join(map(self.__getitem__, words))
        except KeyError:
            return _as_bytes(self._tokenizer.encode(text))

    def __missing__(self, word: str) -> bytes:
        if self._tokenizer.clean_fn(word) != word:
            raise KeyError(word)  # `&amp;lt;` in a clean text would be cleaned once more
        tokens = _as_bytes(self._tokenizer.encode(word))
        if len(self) >= WORDS_KEPT:
            self.clear()
        if len(word) <= LONGEST_KEPT:
            self[word] = tokens
        return tokens


def _goes_by_words(tokenizer: Any) -> bool:
    """Whether it is OpenCLIP's own, as it is by default."""
    return (
        type(tokenizer) is BoundedTokenizer
        and tokenizer.clean_fn is get_clean_fn("lower")
        and tokenizer.reduction_fn is None
        and not any(" " in tokenizer.decoder[number] for number in tokenizer.all_special_ids)
    )


def _as_bytes(tokens: list[int]) -> bytes:
    return np.array(tokens, "<i4").tobytes()
