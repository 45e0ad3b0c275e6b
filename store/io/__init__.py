"""Durable local files, fault points, signals, progress bars and printable text."""

from caskd.store.io import descriptors, faults, files
from caskd.store.io.claim import CLAIM, claimed
from caskd.store.io.console import (
    SECONDS_BETWEEN_LINES,
    Progress,
    progress,
    progress_to,
    rate_text,
    tell,
)
from caskd.store.io.disk import CACHE_VARIABLE, cache_folder, check_room
from caskd.store.io.mixups import DATA_ENDINGS, is_predictions, refuse_mixup, refuse_occupied
from caskd.store.io.printable import (
    bytes_text,
    counted,
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
from caskd.store.io.unreadable import check_readable, is_limit_reached, system_failure

__all__ = [
    "CACHE_VARIABLE",
    "CLAIM",
    "DATA_ENDINGS",
    "MAX_JSON_DEPTH",
    "SECONDS_BETWEEN_LINES",
    "Progress",
    "StrangeFileError",
    "bytes_text",
    "cache_folder",
    "check_readable",
    "check_room",
    "claimed",
    "counted",
    "csv_cell",
    "depth_exceeds",
    "descriptors",
    "duration_text",
    "escape_control",
    "escape_markdown",
    "faults",
    "files",
    "first_signal",
    "is_limit_reached",
    "is_predictions",
    "parse_json",
    "plot_label",
    "progress",
    "progress_to",
    "rate_text",
    "read_json",
    "read_json_object",
    "read_regular",
    "refuse_mixup",
    "refuse_occupied",
    "strip_control",
    "system_failure",
    "tell",
    "value_text",
]
