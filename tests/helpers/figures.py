"""Reports whose figures are drawn but not encoded: that is most of the time a report takes."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

from matplotlib.figure import Figure

from caskd.eval.report import plot_style

BLANK = {
    "png": b"\x89PNG\r\n\x1a\n",
    "svg": b'<svg xmlns="http://www.w3.org/2000/svg" width="1pt" height="1pt"></svg>',
}


@contextmanager
def blank_figures() -> Iterator[None]:
    """Write each figure as an empty file, for tests of tables, pages and numbers."""

    def saved(figure: Figure, kind: str, **options: Any) -> bytes:
        assert figure.axes, "a figure without panels"
        return BLANK[kind]

    with mock.patch.object(plot_style, "_saved", saved):
        yield
