"""A report is a list of parts: each has CSV tables, figures and a section of the page.

The files of a report, its page, and the clean-up of an earlier report all derive from this list.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from matplotlib.figure import Figure

from caskd.eval.report.folder import SUMMARY
from caskd.eval.report.page import Picture, Section, html_bytes
from caskd.eval.report.plot_style import on_dark, png_bytes, svg_bytes
from caskd.eval.report.tables import csv_bytes

Rows = Iterable[Mapping[str, Any]]


@dataclass(frozen=True)
class Plot:
    """A figure of a report: NAME.png, NAME.svg, and a picture for the page."""

    alt: str
    draw: Callable[[Any], Figure | None]
    """Draws the analysis; None if the analysis lacks what the figure shows."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """One part of a report."""

    tables: Mapping[str, Callable[[Any], Rows]] = field(default_factory=dict)
    """NAME -> rows of NAME.csv from the analysis; a table without rows has no file."""
    plots: Mapping[str, Plot] = field(default_factory=dict)
    section: Callable[[Any, Mapping[str, Picture]], Section | None] | None = None
    """Builds the section from the analysis and the pictures of all parts; None if it is empty."""


@dataclass(frozen=True)
class Report:
    """A finished report, before it is written."""

    summary: dict[str, Any]
    files: Mapping[str, bytes]
    show: Callable[[], None]
    """Prints the summary on the terminal."""


def build_files(
    parts: Sequence[Part], analysis: Any, title: str, summary: Mapping[str, Any]
) -> dict[str, bytes]:
    """Every file of a report; `summary.json` first, because it marks the folder as a report."""
    files = {SUMMARY: json.dumps(summary, indent=2, allow_nan=False).encode()}
    pictures = {}
    for part in parts:
        for name, spec in part.plots.items():
            figure = spec.draw(analysis)
            if figure is not None:
                files[f"{name}.png"] = png_bytes(figure)
                pictures[name] = picture_of(figure, spec.alt)
                files[f"{name}.svg"] = pictures[name].light_svg
        for name, rows in part.tables.items():
            content = csv_bytes(rows(analysis))
            if content:
                files[f"{name}.csv"] = content
    built = (part.section(analysis, pictures) for part in parts if part.section is not None)
    sections = [section for section in built if section is not None]
    files["index.html"] = html_bytes(title, sections, summary["caskd_version"])
    return files


def picture_of(figure: Figure, alt: str) -> Picture:
    """The figure for a page, in light and dark."""
    svg = svg_bytes(figure)
    return Picture(alt, svg, on_dark(svg))


def file_names(parts: Sequence[Part]) -> set[str]:
    """Names of all files that reports with these parts may hold, besides summary and page."""
    return {
        *(f"{name}.csv" for part in parts for name in part.tables),
        *(f"{name}.{kind}" for part in parts for name in part.plots for kind in ("png", "svg")),
    }
