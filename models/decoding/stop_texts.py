"""The text of an answer, and the stop texts that end it.

Decoding leaves special tokens out, so their ids stop.
"""

import string
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

from caskd.store.errors import UsageError

_SPARE_TOKENS = 4
"""Tokens that are decoded beyond those of the longest stop text."""


def special_tokens(tokenizer: Any) -> dict[str, int]:
    """Text -> id of every token that decoding leaves out."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    found = {str(token): int(number) for number, token in added.items() if token.special}
    named = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
    return {**{str(text): int(number) for text, number in named}, **found}


def check_stop_texts(tokenizer: Any, stop: Sequence[str]) -> None:
    """Refuse stop texts that could never be found.

    Raises:
        UsageError: a stop text has a special token and more.
    """
    special = special_tokens(tokenizer)
    for text in dict.fromkeys(stop):
        inside = [token for token in special if token and token in text]
        if text not in special and inside:
            token = max(inside, key=len)
            raise UsageError(
                f"got --stop {text!r}, which holds the special token {token!r}: answers have no "
                f"special tokens, so it would never stop; pass --stop {token!r} alone"
            )


def answer_text(tokenizer: Any, new_ids: Sequence[int]) -> str:
    """The text that new tokens add to a prompt, without special tokens.

    Decoders of SentencePiece vocabularies drop a space at the start of a text, which an answer is
    not. A character that the last tokens leave incomplete is no text and is left out.
    """
    before = _letter(tokenizer)
    text: str = tokenizer.decode([*before, *new_ids], skip_special_tokens=True)
    return text[len(before) :].rstrip("\ufffd")


@lru_cache(maxsize=4)
def _letter(tokenizer: Any) -> tuple[int, ...]:
    """The id of a token that is one letter, to decode others behind it; () if there is none."""
    for letter in string.ascii_letters + string.digits:
        found = tokenizer.convert_tokens_to_ids(letter)
        if found is not None and tokenizer.decode([found, found]) == 2 * letter:
            return (int(found),)
    return ()


class StopTexts:
    """The stop texts of one answer."""

    def __init__(self, tokenizer: Any, texts: Sequence[str]) -> None:
        self._tokenizer = tokenizer
        self._texts = texts
        special = special_tokens(tokenizer) if texts else {}
        self._ids = {special[text] for text in texts if text in special}
        # A token has at least one byte: a stop text lies within as many tokens as it has bytes.
        self._window = max((len(text.encode()) for text in texts), default=0) + _SPARE_TOKENS

    def complete(self, new_ids: Sequence[int]) -> bool:
        """Whether the last of an answer's new tokens completes a stop text."""
        if not self._texts:
            return False
        tail = list(new_ids[-self._window :])
        decoded = answer_text(self._tokenizer, tail)
        return tail[-1] in self._ids or any(text in decoded for text in self._texts)

    def cut(self, text: str) -> str:
        """The text before its first stop text."""
        starts = [text.find(stop_text) for stop_text in self._texts]
        return text[: min((start for start in starts if start >= 0), default=len(text))]
