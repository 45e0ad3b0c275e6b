"""Durable local files, fault points, signals, progress bars and printable text."""

from caskd.store.io import descriptors, faults, files
from caskd.store.io.claim import CLAIM, claimed
from caskd.store.io.console import SECONDS_BETWEEN_LINES, Progress, progress
from caskd.store.io.printable import (
    bytes_text,
    csv_cell,
    duration_text,
    escape_control,
    escape_markdown,
    plot_label,
    strip_control,
    value_text,
)
from caskd.store.io.signals import first_signal
from caskd.store.io.unreadable import check_readable, is_limit_reached, system_failure

__all__ = [
    "CLAIM",
    "SECONDS_BETWEEN_LINES",
    "Progress",
    "bytes_text",
    "check_readable",
    "claimed",
    "csv_cell",
    "descriptors",
    "duration_text",
    "escape_control",
    "escape_markdown",
    "faults",
    "files",
    "first_signal",
    "is_limit_reached",
    "plot_label",
    "progress",
    "strip_control",
    "system_failure",
    "value_text",
]
