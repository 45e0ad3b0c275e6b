"""The figures of a report, drawn on Figure objects: no window, no global state."""

import io
import warnings
from collections.abc import Sequence
from typing import Any

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, PercentFormatter

from caskd.eval.cost import flops_per_token, token_cost
from caskd.eval.measure import Measured
from caskd.eval.text import plot_label

# Okabe and Ito's colors, told apart by color-blind readers too.
COLORS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
_DOTS_PER_INCH = 150
_LEGEND_LETTERS = 90  # that fit on one line
_PREFIXES = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


def curve_figure(measured: Sequence[Measured]) -> Figure:
    """Quality over deferral rate and over FLOPs, with the random and oracle lines."""
    figure = _figure()
    by_rate, by_cost = figure.subplots(1, 2, sharey=True)
    for number, one in enumerate(measured):
        color = COLORS[number % len(COLORS)]
        curve, sizes = one.curve, (one.cascade.small, one.cascade.large)
        oracle_cost = token_cost(curve.oracle_rate, *(p.num_parameters for p in sizes))
        for axes, x, oracle_x in (
            (by_rate, curve.deferral_rate, curve.oracle_rate),
            (by_cost, one.token_flops, oracle_cost),
        ):
            axes.plot(oracle_x, curve.oracle_quality, color=color, lw=1.1, ls=":")
            axes.plot(x[[0, -1]], curve.random[[0, -1]], color=color, lw=1.1, ls="--")
            axes.plot(x, curve.quality, color=color, lw=2, label=plot_label(one.label))
    large = measured[0].cascade.large
    by_cost.plot(
        [flops_per_token(large.num_parameters)],
        [measured[0].curve.quality_large],
        marker="*", ms=11, color="#444444", ls="none",
    )  # fmt: skip
    by_rate.set(xlabel="deferral rate", ylabel="quality (share of exact matches)", xlim=(0, 1))
    by_rate.xaxis.set_major_formatter(PercentFormatter(1.0))
    by_cost.set(xlabel="FLOPs per token (2 per parameter)")
    by_cost.set_xlim(left=0)
    by_cost.xaxis.set_major_formatter(FuncFormatter(_engineering))
    for axes, title in ((by_rate, "Quality by deferral rate"), (by_cost, "Quality by cost")):
        _dress(axes, title)
    handles = [*by_rate.get_legend_handles_labels()[0], *_line_keys(plot_label(large.model_name))]
    _legend_below(figure, handles)
    return figure


def parts_figure(measured: Sequence[Measured]) -> Figure:
    """A1, what the small model's kept answers bring, and A2, what the large model's bring."""
    figure = _figure()
    kept, deferred = figure.subplots(1, 2, sharey=True)
    for number, one in enumerate(measured):
        color = COLORS[number % len(COLORS)]
        rate, label = one.curve.deferral_rate, plot_label(one.label)
        kept.plot(rate, one.curve.a1, color=color, lw=2, label=label)
        deferred.plot(rate, one.curve.a2, color=color, lw=2)
        kept.plot([0, 1], one.curve.a1[[0, -1]], color=color, lw=1.1, ls="--")
        deferred.plot([0, 1], one.curve.a2[[0, -1]], color=color, lw=1.1, ls="--")
    _dress(kept, "A1: answers kept from the small model")
    _dress(deferred, "A2: answers of the large model")
    for axes in (kept, deferred):
        axes.set(xlabel="deferral rate", xlim=(0, 1))
        axes.set_ylim(bottom=0)
        axes.xaxis.set_major_formatter(PercentFormatter(1.0))
    kept.set_ylabel("share of the quality")
    random = Line2D([], [], color="#777777", lw=1.1, ls="--", label="random deferral")
    _legend_below(figure, [*kept.get_legend_handles_labels()[0], random])
    return figure


def png_bytes(figure: Figure) -> bytes:
    """The figure as a PNG file, without the clock or versions in it."""
    FigureCanvasAgg(figure)
    content = io.BytesIO()
    with warnings.catch_warnings():
        # A model's name may be in a script that the font lacks: boxes are shown, nothing is wrong.
        warnings.filterwarnings(
            "ignore", message="Glyph .* missing from font", category=UserWarning
        )
        figure.savefig(content, format="png", dpi=_DOTS_PER_INCH, metadata={"Software": None})
    return content.getvalue()


def _figure() -> Figure:
    figure = Figure(figsize=(11, 5))
    figure.set_layout_engine("constrained", wspace=0.05)
    return figure


def _dress(axes: Any, title: str) -> None:
    axes.set_title(title, fontsize=11)
    axes.grid(color="#dddddd", lw=0.6)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _line_keys(large: str) -> list[Line2D]:
    gray: dict[str, Any] = {"color": "#777777", "lw": 1.1}
    return [
        Line2D([], [], ls="--", label="random deferral", **gray),
        Line2D([], [], ls=":", label="oracle", **gray),
        Line2D([], [], ls="none", marker="*", ms=10, color="#444444", label=f"{large} alone"),
    ]


def _legend_below(figure: Figure, handles: Sequence[Any]) -> None:
    letters = sum(len(handle.get_label()) for handle in handles)
    columns = len(handles) if letters <= _LEGEND_LETTERS else 3
    figure.legend(handles=handles, loc="outside lower center", ncols=columns, frameon=False)


def _engineering(value: float, _: int) -> str:
    for factor, prefix in _PREFIXES:
        if abs(value) >= factor:
            return f"{value / factor:g} {prefix}"
    return f"{value:g}"
