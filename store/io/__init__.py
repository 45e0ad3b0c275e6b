"""Local files, fault points, console output and safe printing of untrusted text."""

from caskd.store.io import faults, files
from caskd.store.io.claim import CLAIM, claimed
from caskd.store.io.console import SECONDS_BETWEEN_LINES, Progress, progress
from caskd.store.io.files import (
    create_exclusive,
    fsync_directory,
    make_directories,
    remove_tree,
    replace_file,
)
from caskd.store.io.printable import (
    bytes_text,
    clean,
    csv_cell,
    duration_text,
    markdown_line,
    plain,
    plot_label,
    shown,
)
from caskd.store.io.signals import first_signal

__all__ = [
    "CLAIM",
    "SECONDS_BETWEEN_LINES",
    "Progress",
    "bytes_text",
    "claimed",
    "clean",
    "create_exclusive",
    "csv_cell",
    "duration_text",
    "faults",
    "files",
    "first_signal",
    "fsync_directory",
    "make_directories",
    "markdown_line",
    "plain",
    "plot_label",
    "progress",
    "remove_tree",
    "replace_file",
    "shown",
]
