"""Sanitise untrusted text for a terminal, CSV or HTML; format amounts with their unit.

Names and texts come from models and from stores of other people. Which function to use:

* `strip_control`    a name in a report: control characters are removed;
* `escape_control`   a line on a terminal: unprintable characters become `\\xNN`;
* `value_text`       a value inside an error: ASCII, one line, at most 60 characters;
* `escape_markdown`, `csv_cell`, `plot_label`  text in Markdown, CSV or a plot.
"""

import re
import unicodedata
from typing import Any

_CSV_FORMULA = ("=", "+", "-", "@")


def strip_control(text: str) -> str:
    """`text` without control characters, terminal escapes and marks of writing direction."""
    return "".join(c for c in text if unicodedata.category(c) not in ("Cc", "Cf", "Cs"))


def escape_control(text: str) -> str:
    """`text` with each unprintable character as `\\xNN`, so that it cannot drive a terminal."""
    if str(text).isprintable():
        return str(text)
    return "".join(c if c.isprintable() else f"\\x{ord(c):02x}" for c in str(text))


def value_text(value: Any) -> str:
    """A value from a store for an error message: ASCII, one line, at most 60 characters."""
    text = ascii(value) if not isinstance(value, dict | list) else type(value).__name__
    return text if len(text) <= 60 else text[:57] + "..."


def escape_markdown(text: str) -> str:
    """`escape_control(text)` in which nothing is Markdown or HTML."""
    return re.sub(r"([\\`*\[\]<>|#!~])", r"\\\1", escape_control(text))


def csv_cell(text: str) -> str:
    """A cell that no spreadsheet runs as a formula: a quote before = + - and @ (OWASP).

    Control characters are removed: csv leaves a carriage return unquoted, and a new row could
    begin there.
    """
    text = strip_control(text)
    return f"'{text}" if text.startswith(_CSV_FORMULA) else text


def plot_label(text: str) -> str:
    """A label that matplotlib neither parses as mathematics nor hides for a leading underscore."""
    text = strip_control(text).replace("$", r"\$")
    return f" {text}" if text.startswith("_") else text


def duration_text(seconds: float) -> str:
    """A duration with its unit: 40 s, 12 min, 3.4 h."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:,.1f} h"


def counted(count: int, noun: str) -> str:
    """A number with its noun: 1 shard, 2,000 shards."""
    return f"{count:,} {noun}" if count == 1 else f"{count:,} {noun}s"


def bytes_text(num_bytes: float) -> str:
    """A number of bytes with its unit: 12.3 MB."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6)):
        if num_bytes >= scale:
            return f"{num_bytes / scale:,.1f} {unit}"
    return f"{num_bytes / 1e3:,.1f} kB"
