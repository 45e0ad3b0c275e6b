"""Durable local files, fault points, signals, progress bars and printable text."""

from caskd.store.io import faults, files
from caskd.store.io.claim import CLAIM, claimed
from caskd.store.io.console import SECONDS_BETWEEN_LINES, Progress, progress, tell
from caskd.store.io.disk import check_room, disk_error
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
from caskd.store.io.strange_files import (
    MAX_JSON_DEPTH,
    StrangeFileError,
    depth_exceeds,
    parse_json,
    read_json,
    read_json_object,
    read_regular,
)

__all__ = [
    "CLAIM",
    "MAX_JSON_DEPTH",
    "SECONDS_BETWEEN_LINES",
    "Progress",
    "StrangeFileError",
    "bytes_text",
    "check_room",
    "claimed",
    "csv_cell",
    "depth_exceeds",
    "disk_error",
    "duration_text",
    "escape_control",
    "escape_markdown",
    "faults",
    "files",
    "first_signal",
    "parse_json",
    "plot_label",
    "progress",
    "read_json",
    "read_json_object",
    "read_regular",
    "strip_control",
    "tell",
    "value_text",
]
