"""Rows of figures as a table of the page."""

from collections.abc import Iterable, Mapping
from typing import Any

from caskd.eval.measure import ALL_TASKS
from caskd.eval.page import Cell, Row, Table

Heads = Mapping[str, tuple[str, str]]
"""Key of a row -> heading and format: `text`, `long`, or that of a number."""


def table(
    heads: Heads, rows: Iterable[Mapping[str, Any]], caption: str = "", *, folded: bool = False
) -> Table:
    """A table of these columns; those that no row fills are left out."""
    rows = list(rows)
    tasks = {row.get("task") for row in rows}
    used = {
        key: head for key, head in heads.items()
        if any(row.get(key) not in (None, "") for row in rows)
    }  # fmt: skip
    kinds = {key: form if form in ("text", "long") else "" for key, (_, form) in used.items()}
    return Table(
        heads=[Cell(head, "text" if kinds[key] else "") for key, (head, _) in used.items()],
        rows=[
            Row([_cell(row.get(key), form) for key, (_, form) in used.items()],
                strong=row.get("task") == ALL_TASKS and len(tasks) > 1)
            for row in rows
        ],
        caption=caption,
        folded=folded,
    )  # fmt: skip


def _cell(value: Any, form: str) -> Cell:
    if form in ("text", "long"):
        return Cell(str(value), form)
    if value is None:
        return Cell("\N{EN DASH}", "", "")
    return Cell(format(value, form), "", repr(value))
