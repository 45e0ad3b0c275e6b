"""index.html of a report: one file that fetches nothing; a few lines of its own sort its tables."""

import base64
import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import Environment

from caskd.eval.study import ALL_TASKS

# Sorts a table by the column whose heading is pressed: as numbers where all cells carry one.
_SCRIPT = """
for (const button of document.querySelectorAll("th button")) button.onclick = () => {
  const head = button.parentElement, body = head.closest("table").tBodies[0];
  const up = head.getAttribute("aria-sort") !== "descending";
  for (const th of head.parentElement.children) th.removeAttribute("aria-sort");
  head.setAttribute("aria-sort", up ? "descending" : "ascending");
  const key = row => row.cells[head.cellIndex].dataset.v ?? row.cells[head.cellIndex].textContent;
  const compare = (a, b) => a === b ? 0 : a === "" ? 1 : b === "" ? -1 :
    (isNaN(a) || isNaN(b) ? b.localeCompare(a) : b - a) * (up ? 1 : -1);
  body.append(...[...body.rows].sort((a, b) => compare(key(a), key(b))));
};
"""

_STYLE = """
:root { color-scheme: light dark; --line: #8883; --soft: #8881; }
body { font: 15px/1.5 system-ui, sans-serif; max-width: 68rem; margin: 2rem auto; padding: 0 1rem; }
@media (prefers-color-scheme: dark) { body { background: #16191d; color: #dfe3e8; } }
h1 { font-size: 1.5rem; line-height: 1.25; }
h2 { font-size: 1.15rem; margin: 2.4rem 0 .4rem; }
p, li { max-width: 46rem; }
.wide { overflow-x: auto; margin: .8rem 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; font-size: .92rem; }
caption { text-align: left; font-weight: 600; padding: .3rem 0; }
summary { font-weight: 600; cursor: pointer; margin: .8rem 0; }
th, td { padding: .28rem .6rem; text-align: right; white-space: nowrap; vertical-align: top; }
th, td { border-bottom: 1px solid var(--line); }
th.text, td.text { text-align: left; }
td.long { text-align: left; white-space: normal; min-width: 7rem; max-width: 17rem;
          overflow-wrap: anywhere; }
tbody tr:hover { background: var(--soft); }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible { outline: 2px solid; }
th[aria-sort=descending] button::after { content: " \\2193"; }
th[aria-sort=ascending] button::after { content: " \\2191"; }
tr.strong { font-weight: 600; }
img { width: 100%; max-width: 60rem; display: block; margin: .8rem 0; }
.warning { border-left: 4px solid #d55e00; padding: .3rem .8rem; margin: .6rem 0; }
.soft { opacity: .8; font-size: .92rem; }
footer { margin-top: 2.4rem; font-size: .85rem; opacity: .75; }
"""

_TEMPLATE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; \
style-src 'sha256-{{ style_hash }}'; script-src 'sha256-{{ script_hash }}'; img-src data:; \
base-uri 'none'; form-action 'none'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Cascade report</title>
<style>{{ style|safe }}</style>
</head>
<body>
<h1>{{ title }}</h1>
{% for section in sections %}
<section>
{% if section.heading %}<h2>{{ section.heading }}</h2>{% endif %}
{% for warning in section.warnings %}<p class="warning">{{ warning }}</p>{% endfor %}
{% for text in section.texts %}<p>{{ text }}</p>{% endfor %}
{% if section.bullets %}<ul>{% for text in section.bullets %}<li>{{ text }}</li>{% endfor %}</ul>
{% endif %}
{% for picture in section.pictures %}<picture>
<source media="(prefers-color-scheme: dark)" srcset="data:image/svg+xml;base64,{{ picture.dark }}">
<img src="data:image/svg+xml;base64,{{ picture.light }}" alt="{{ picture.alt }}"></picture>
{% endfor %}
{% for table in section.tables %}\
{% if table.folded %}<details><summary>{{ table.caption }}</summary>{% endif %}\
<div class="wide"><table>
{% if table.caption and not table.folded %}<caption>{{ table.caption }}</caption>{% endif %}
<thead><tr>{% for head in table.heads %}<th class="{{ head.kind }}"><button>{{ head.text }}\
</button></th>{% endfor %}</tr></thead>
<tbody>{% for row in table.rows %}<tr{% if row.strong %} class="strong"{% endif %}>\
{% for cell in row.cells %}<td class="{{ cell.kind }}"{% if cell.value is not none %} \
data-v="{{ cell.value }}"{% endif %}>{{ cell.text }}</td>{% endfor %}</tr>
{% endfor %}</tbody></table></div>{% if table.folded %}</details>{% endif %}

{% endfor %}
{% for text in section.notes %}<p class="soft">{{ text }}</p>{% endfor %}
</section>
{% endfor %}
<footer>caskd {{ version }}. Every number is in summary.json and the CSV files beside this page,
every figure as PNG and SVG.</footer>
<script>{{ script|safe }}</script>
</body>
</html>
"""


@dataclass(frozen=True)
class Cell:
    """One cell of a table."""

    text: str
    kind: str = ""
    """`text` or `long` for words, nothing for a number."""
    value: str | None = None
    """What it is sorted by, where that is not its text."""


@dataclass(frozen=True)
class Row:
    """One row of a table."""

    cells: Sequence[Cell]
    strong: bool = False


@dataclass(frozen=True)
class Table:
    """A table that sorts by the heading that is pressed."""

    heads: Sequence[Cell]
    rows: Sequence[Row]
    caption: str = ""
    folded: bool = False
    """Whether only the caption shows, until it is pressed."""


@dataclass(frozen=True)
class Picture:
    """A figure as two SVG files, one for each color scheme."""

    alt: str
    light_svg: bytes
    dark_svg: bytes

    @property
    def light(self) -> str:
        """In base64."""
        return base64.b64encode(self.light_svg).decode()

    @property
    def dark(self) -> str:
        """In base64."""
        return base64.b64encode(self.dark_svg).decode()


@dataclass(frozen=True)
class Section:
    """A heading and what stands below it, in this order."""

    heading: str = ""
    warnings: Sequence[str] = field(default=())
    texts: Sequence[str] = field(default=())
    bullets: Sequence[str] = field(default=())
    pictures: Sequence[Picture] = field(default=())
    tables: Sequence[Table] = field(default=())
    notes: Sequence[str] = field(default=())


def html_bytes(title: str, sections: Sequence[Section], version: str) -> bytes:
    """The page; every text in it is escaped, and the browser runs nothing but its sorting."""
    template = Environment(autoescape=True, trim_blocks=True).from_string(_TEMPLATE)
    page = template.render(
        title=title,
        sections=sections,
        version=version,
        style=_STYLE,
        script=_SCRIPT,
        style_hash=_csp_hash(_STYLE),
        script_hash=_csp_hash(_SCRIPT),
    )
    return page.encode()


def _csp_hash(text: str) -> str:
    return base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


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
