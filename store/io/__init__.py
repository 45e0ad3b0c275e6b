"""Local files, fault points, console output and safe printing of untrusted text."""

from caskd.store.io import faults, files
from caskd.store.io.console import SECONDS_BETWEEN_LINES, Progress, progress
from caskd.store.io.files import (
    create_exclusive,
    fsync_directory,
    make_directories,
    remove_tree,
    replace_file,
)
from caskd.store.io.printable import clean, csv_cell, markdown_line, plain, plot_label, shown

__all__ = [
    "SECONDS_BETWEEN_LINES",
    "Progress",
    "clean",
    "create_exclusive",
    "csv_cell",
    "faults",
    "files",
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
