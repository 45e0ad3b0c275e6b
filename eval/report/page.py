"""index.html of a report: sections of texts, figures and tables, rendered from page.html.j2."""

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib import resources
from typing import Any

from jinja2 import Environment, Template

from caskd.eval.report.terms import explained, explained_head
from caskd.eval.study import ALL_TASKS

REPORT_FOOT = (
    "summary.json and the CSV files beside this page hold every number, the PNG and SVG files "
    "every figure."
)
Heads = Mapping[str, tuple[str, str]]
"""Key of a row -> heading and format of its column: `text`, `long`, or a format of numbers."""


@dataclass(frozen=True)
class Cell:
    """One cell of a table."""

    text: str
    kind: str = ""
    """`text` or `long` for words, empty for a number."""
    value: str | None = None
    """Sort key, if it is not the text."""


@dataclass(frozen=True)
class Row:
    """One row of a table."""

    cells: Sequence[Cell]
    strong: bool = False


@dataclass(frozen=True)
class Table:
    """A table; a click on a heading sorts it."""

    heads: Sequence[Cell]
    rows: Sequence[Row]
    caption: str = ""
    folded: bool = False
    """Whether only the caption shows until it is clicked."""


@dataclass(frozen=True)
class Picture:
    """A plot as two SVG files, one for each color scheme."""

    alt: str
    light_svg: bytes
    dark_svg: bytes

    @property
    def light(self) -> str:
        """The SVG file in base64."""
        return base64.b64encode(self.light_svg).decode()

    @property
    def dark(self) -> str:
        """The SVG file in base64."""
        return base64.b64encode(self.dark_svg).decode()


@dataclass(frozen=True)
class Slider:
    """A slider over the thresholds of each small model."""

    series: str
    """JSON: a list with the numbers of each small model, and no text."""
    unit: str
    """Of the cost."""
    names: Sequence[str]
    """Of the small models."""
    first: int = 0
    """The small model that shows first."""


@dataclass(frozen=True)
class Section:
    """A heading and its content, in this order."""

    heading: str = ""
    lead: str = ""
    """One sentence above all else."""
    warnings: Sequence[str] = field(default=())
    texts: Sequence[str] = field(default=())
    bullets: Sequence[str] = field(default=())
    slider: Slider | None = None
    pictures: Sequence[Picture] = field(default=())
    tables: Sequence[Table] = field(default=())
    commands: Sequence[str] = field(default=())
    """Command lines to copy."""
    terms: Mapping[str, str] = field(default_factory=dict)
    notes: Sequence[str] = field(default=())


def html_bytes(
    title: str,
    sections: Sequence[Section],
    version: str,
    *,
    window: str = "Cascade report",
    foot: str = REPORT_FOOT,
) -> bytes:
    """Render the page; every text in it is escaped, and its one script sorts and slides.

    Args:
        title: heading of the page.
        sections: its content.
        version: of caskd.
        window: title of the browser's window.
        foot: last sentence of the page.
    """
    template = _template()
    return template.render(
        title=title, sections=sections, version=version, window=window, foot=foot
    ).encode()


@cache
def _template() -> Template:
    source, style, script = (
        resources.files(__package__).joinpath(name).read_text(encoding="utf-8")
        for name in ("page.html.j2", "page.css", "page.js")
    )
    environment = Environment(autoescape=True, trim_blocks=True)
    environment.globals |= {"style": style, "script": script}
    environment.filters |= {
        "csp_digest": _csp_digest,
        "explained": explained,
        "explained_head": explained_head,
    }
    return environment.from_string(source)


def _csp_digest(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def table(
    heads: Heads, rows: Iterable[Mapping[str, Any]], caption: str = "", *, folded: bool = False
) -> Table:
    """A table of these columns; columns without a value are left out."""
    rows = list(rows)
    tasks = {row.get("task") for row in rows}
    used = {
        key: head
        for key, head in heads.items()
        if any(row.get(key) not in (None, "") for row in rows)
    }
    kinds = {key: form if form in ("text", "long") else "" for key, (_, form) in used.items()}
    return Table(
        heads=[Cell(head, "text" if kinds[key] else "") for key, (head, _) in used.items()],
        rows=[
            Row(
                [_cell(row.get(key), form) for key, (_, form) in used.items()],
                strong=row.get("task") == ALL_TASKS and len(tasks) > 1,
            )
            for row in rows
        ],
        caption=caption,
        folded=folded,
    )


def _cell(value: Any, form: str) -> Cell:
    if form in ("text", "long"):
        return Cell(str(value), form)
    if value is None:
        return Cell("\N{EN DASH}", "", "")
    return Cell(format(value, form), "", repr(value))
