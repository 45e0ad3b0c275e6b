"""Style of plots, on paper and on a dark screen, and their export as PNG and SVG."""

import io
import math
import re
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import matplotlib
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, PercentFormatter

from caskd.store.io import plot_label

_DOTS_PER_INCH = 300
_WIDTH, _HEIGHT = 7.2, 3.5  # inches: the width of a page of two columns
_PANELS_IN_ROW = 4
_LEGEND_LETTERS = 76  # that fit on one line
_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Style:
    """Colors of a plot."""

    ink: str
    soft: str
    grid: str
    colors: tuple[str, ...]
    """Okabe and Ito's palette, which color-blind readers can distinguish; on paper its light colors
    are darker, so that every line has a contrast of 3 to 1."""

    def color(self, number: int) -> str:
        """The color of a series."""
        return self.colors[number % len(self.colors)]


PAPER = Style(
    "#222222", "#6f6f6f", "#dddddd",
    ("#0072B2", "#D55E00", "#008F68", "#B8628F", "#A87400", "#2F8CC4", "#000000"),
)  # fmt: skip
DARK = Style(
    "#dddddd", "#999999", "#3a3f44",
    ("#4aa8e0", "#E5762A", "#00B383", "#CC79A7", "#E69F00", "#8CCBF0", "#ffffff"),
)  # fmt: skip


def panels(count: int, **options: Any) -> tuple[Figure, list[Any]]:
    """A figure with `count` panels, a few in each row."""
    rows = math.ceil(count / _PANELS_IN_ROW)
    figure = Figure(figsize=(_WIDTH, _HEIGHT * rows), facecolor="none")
    figure.set_layout_engine("constrained", wspace=0.05)
    grid = figure.subplots(rows, math.ceil(count / rows), squeeze=False, **options).flatten()
    for axes in grid[count:]:
        axes.remove()
    found = list(grid[:count])
    for axes in found:
        axes.set_facecolor("none")
        axes.grid(color=PAPER.grid, lw=0.5)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.spines[["left", "bottom"]].set_color(PAPER.soft)
        axes.tick_params(colors=PAPER.ink, labelsize=8, labelbottom=True)
    return figure, found


def dress(axes: Any, title: str, x: str, y: str | None = None) -> None:
    """Title and labels of one panel."""
    axes.set_title(title, fontsize=9, color=PAPER.ink)
    axes.set_xlabel(x, fontsize=8.5, color=PAPER.ink)
    if y:
        axes.set_ylabel(y, fontsize=8.5, color=PAPER.ink)


def in_percent(axes: Any) -> None:
    """A deferral rate along x."""
    axes.set_xlim(0, 1)
    axes.xaxis.set_major_formatter(PercentFormatter(1.0))


def in_powers(axes: Any) -> None:
    """A cost along x, from zero."""
    axes.set_xlim(left=0)
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(FuncFormatter(_engineering))


def arm_lines(arms: Sequence[str]) -> list[tuple[str, str]]:
    """Color of each series' arm, and its label: the arm's name at its first seed."""
    order = list(dict.fromkeys(arms))
    return [
        (PAPER.color(order.index(arm)), "_seed" if arm in arms[:index] else plot_label(arm))
        for index, arm in enumerate(arms)
    ]


def legend_below(figure: Figure, handles: list[Any]) -> None:
    """One legend for all panels."""
    letters = sum(len(handle.get_label()) + 4 for handle in handles)
    columns = len(handles) if letters <= _LEGEND_LETTERS else 3
    longest = max(len(handle.get_label()) for handle in handles)
    columns = min(columns, max(1, _LEGEND_LETTERS // (longest + 4)))
    figure.legend(
        handles=handles,
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=8,
        labelcolor=PAPER.ink,
    )


def png_bytes(figure: Figure) -> bytes:
    """The figure as a PNG file on white, without dates or versions in it."""
    return _saved(figure, "png", dpi=_DOTS_PER_INCH, facecolor="white", metadata={"Software": None})


def svg_bytes(figure: Figure) -> bytes:
    """The figure as a transparent SVG file, its letters as outlines."""
    with matplotlib.rc_context({"svg.hashsalt": "caskd", "svg.fonttype": "path"}):
        return _saved(figure, "svg", metadata={"Date": None, "Creator": None})


def on_dark(svg: bytes) -> bytes:
    """The same SVG file in the colors of a dark screen."""
    pairs = [(PAPER.ink, DARK.ink), (PAPER.soft, DARK.soft), (PAPER.grid, DARK.grid)]
    pairs += zip(PAPER.colors, DARK.colors, strict=True)
    colors = {light.lower(): dark.lower() for light, dark in pairs}
    found = re.compile("|".join(colors))
    return found.sub(lambda match: colors[match[0]], svg.decode()).encode()


def _saved(figure: Figure, kind: str, **options: Any) -> bytes:
    FigureCanvasAgg(figure)
    content = io.BytesIO()
    with warnings.catch_warnings():
        # A model's name may use a script that the font lacks; matplotlib then draws boxes.
        warnings.filterwarnings(
            "ignore", message="Glyph .* missing from font", category=UserWarning
        )
        figure.savefig(content, format=kind, **options)
    figure.set_layout_engine("none")  # keep the layout for the next export
    return content.getvalue()


def _engineering(value: float, _: int) -> str:
    for factor, prefix in _PREFIXES:
        if abs(value) >= factor:
            return f"{value / factor:g} {prefix}"
    return f"{value:g}"
