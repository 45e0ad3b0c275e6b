"""Names and answers come from models and from strangers' files: how they are shown safely."""

import re
import unicodedata
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    pass


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


def markdown_line(text: str) -> str:
    """One line of text without control characters, in which nothing is Markdown or HTML."""
    shown = "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in str(text))
    return re.sub(r"([\\`*\[\]<>|#!~])", r"\\\1", shown)


def clean(text: str) -> str:
    """`text` without control characters: what a store says must not drive a terminal."""
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in str(text))


def shown(value: Any) -> str:
    """A value of a store as it may stand in a message: printable, short, one line."""
    text = ascii(value) if not isinstance(value, dict | list) else type(value).__name__
    return text if len(text) <= 60 else text[:57] + "..."


def duration_text(seconds: float) -> str:
    """Time for people: 40 s, 12 min, 3.4 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"


def bytes_text(num_bytes: float) -> str:
    """Bytes for people: 12.3 MB."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:,.1f} {unit}"
    return f"{num_bytes / 1e3:,.1f} kB"
