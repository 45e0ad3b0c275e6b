"""Stop texts that are special tokens: decoding leaves them out of the text, so their ids stop."""

from collections.abc import Sequence
from typing import Any

from caskd.store.errors import UsageError


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
