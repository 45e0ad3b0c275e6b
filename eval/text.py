"""Names and answers come from models and from strangers' files: how they are shown safely."""

import unicodedata

_CSV_FORMULA = ("=", "+", "-", "@")


def plain(text: str) -> str:
    """Without control characters, terminal escapes and marks that turn the writing direction."""
    return "".join(c for c in text if unicodedata.category(c) not in ("Cc", "Cf", "Cs"))


def csv_cell(text: str) -> str:
    """A cell that no spreadsheet takes for a formula: a quote before = + - and @ (OWASP).

    Control characters go: csv leaves a carriage return unquoted, and a new row could begin there.
    """
    text = plain(text)
    return f"'{text}" if text.startswith(_CSV_FORMULA) else text


def plot_label(text: str) -> str:
    """A label that matplotlib neither takes for mathematics nor hides for its first underscore."""
    text = plain(text).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text
