"""The plots of a report, on matplotlib Figure objects: no window, no global state."""

from collections.abc import Sequence
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from caskd.eval.curves import answer_cost
from caskd.eval.report.plot_style import (
    PAPER,
    arm_lines,
    dress,
    in_percent,
    in_powers,
    legend_below,
    panels,
)
from caskd.eval.study import Analysis, CascadeResult
from caskd.store.io import plot_label
from caskd.store.spacing import thin

DRAWN_POINTS = 600
QUALITY = "mean quality"
_UNITS = {
    "flops": "FLOPs per example, lengths counted",
    "seconds": "seconds per example",
    "money": "money per 1,000 examples",
}
_TITLES = {"flops": "Computation", "seconds": "Time", "money": "Money", "cost": "Cost"}


def curve_figure(analysis: Analysis) -> Figure:
    """Quality over deferral rate and over FLOPs, with the random and oracle lines.

    Where the parameters of a model are not known, the second axis is empty and says so.
    """
    results = analysis.results
    figure, (by_rate, by_cost) = panels(2, sharey=True)
    for result, color, label in _colored(results):
        curve = result.curve
        for axes, x, oracle_x in (
            (by_rate, curve.deferral_rate, curve.oracle_rate),
            (by_cost, result.main_cost, result.oracle_cost),
        ):
            _line(axes, oracle_x, curve.oracle_quality, color=color, lw=0.9, ls=":")
            axes.plot(x[[0, -1]], curve.random[[0, -1]], color=color, lw=0.9, ls="--")
            _line(axes, x, curve.quality, color=color, lw=1.5, label=label)
    large = results[0].pair.large
    by_cost.plot(
        [float(answer_cost(large).mean())],
        [results[0].curve.quality_large],
        marker="*",
        ms=9,
        color=PAPER.soft,
        ls="none",
    )
    points = _points(by_cost, analysis, "flops_per_token")
    in_percent(by_rate)
    known = all(result.has_cost for result in results)
    if known:
        in_powers(by_cost)
    dress(by_rate, "Quality by deferral rate", "deferral rate", QUALITY)
    dress(by_cost, "Quality by cost", _main_unit(results) if known else "cost is not known")
    keys = _keys(random="--", oracle=":")
    star = Line2D(
        [],
        [],
        ls="none",
        marker="*",
        ms=8,
        color=PAPER.soft,
        label=f"{plot_label(large.model_name)} alone",
    )
    legend_below(figure, [*_handles(by_rate), *keys, star, *points])
    return figure


def parts_figure(analysis: Analysis) -> Figure:
    """A1 from kept answers of the small model, and A2 from answers of the large model."""
    results = analysis.results
    figure, (kept, deferred) = panels(2, sharey=True)
    for result, color, label in _colored(results):
        rate = result.curve.deferral_rate
        for axes, part in ((kept, result.curve.a1), (deferred, result.curve.a2)):
            _line(axes, rate, part, color=color, lw=1.5, label=label)
            axes.plot([0, 1], part[[0, -1]], color=color, lw=0.9, ls="--")
    dress(kept, "A1: kept answers of the small model", "deferral rate", "part of the quality")
    dress(deferred, "A2: answers of the large model", "deferral rate")
    for axes in (kept, deferred):
        in_percent(axes)
        axes.set_ylim(bottom=0)
    legend_below(figure, [*_handles(kept), *_keys(random="--")])
    return figure


def rules_figure(analysis: Analysis) -> Figure:
    """Every rule on the first small model: quality, and how far it is over random deferral."""
    result = analysis.results[0]
    figure, (quality, gain) = panels(2)
    for number, (name, rule) in enumerate(result.rules.items()):
        curve, color = rule.curve, PAPER.color(number)
        dashes = "-" if number < len(PAPER.colors) else "--"
        _line(
            quality,
            curve.deferral_rate,
            curve.quality,
            color=color,
            ls=dashes,
            lw=1.3,
            label=plot_label(name),
        )
        _line(
            gain, curve.deferral_rate, curve.quality - curve.random, color=color, ls=dashes, lw=1.3
        )
    gain.axhline(0.0, color=PAPER.soft, lw=0.9, ls="--")
    quality.plot([0, 1], result.curve.random[[0, -1]], color=PAPER.soft, lw=0.9, ls="--")
    dress(quality, "Quality by rule", "deferral rate", QUALITY)
    dress(gain, "Quality over random deferral", "deferral rate", "quality over random")
    for axes in (quality, gain):
        in_percent(axes)
    legend_below(figure, [*_handles(quality), *_keys(random="--")])
    return figure


def cost_figure(analysis: Analysis) -> Figure | None:
    """Quality over cost per example: computation, seconds, and with prices money; None without."""
    results = analysis.results
    units = list(results[0].costs)
    if not units:
        return None
    figure, found = panels(len(units), sharey=True)
    for result, color, label in _colored(results):
        for axes, unit in zip(found, units, strict=True):
            cost = result.costs[unit] * (1000 if unit == "money" else 1)
            _line(axes, cost, result.curve.quality, color=color, lw=1.5, label=label)
            if unit == "seconds" and result.tail is not None:
                rate, tail = result.tail
                reached = np.interp(rate, result.curve.deferral_rate, result.curve.quality)
                axes.plot(tail, reached, color=color, lw=1.0, ls=":")
    for axes, unit in zip(found, units, strict=True):
        if unit != "money":  # a price list has no price of a position that two models computed
            _points(axes, analysis, f"{unit}_per_example")
        in_powers(axes)
        first = axes is found[0]
        label = _main_unit(results) if unit == "cost" else _UNITS[unit]
        dress(axes, _TITLES[unit], label, QUALITY if first else None)
    keys = _keys(**{"95th percentile of the seconds": ":"}) if "seconds" in units else []
    handles = [*_handles(found[0]), *keys]
    legend_below(figure, handles)
    return figure


def bleu_figure(analysis: Analysis) -> Figure | None:
    """Corpus BLEU of the cascade's output over deferral rate; None without `--bleu`."""
    figure, (axes,) = panels(1)
    for result, color, label in _colored(analysis.results):
        if result.bleu is None:
            return None
        rate, value = result.bleu
        _line(axes, rate, value, color=color, lw=1.5, label=label)
    in_percent(axes)
    dress(axes, "Corpus BLEU by deferral rate", "deferral rate", "corpus BLEU")
    legend_below(figure, _handles(axes))
    return figure


def chain_figure(analysis: Analysis) -> Figure | None:
    """The chain's frontier and the two-model cascades on one cost axis; None without a chain."""
    chain = analysis.chain
    if chain is None:
        return None
    priced = analysis.priced and analysis.outcomes is None
    figure, (axes,) = panels(1)
    for number, result in enumerate(analysis.results, 1):
        cost = 1000 * result.costs["money"] if priced else result.main_cost
        _line(
            axes,
            cost,
            result.curve.quality,
            color=PAPER.color(number),
            lw=1.3,
            label=plot_label(f"{result.label}, then the large model"),
        )
    label = plot_label(" > ".join(chain.models))
    axes.plot(
        1000 * chain.cost if priced else chain.cost,
        chain.quality,
        color=PAPER.color(0),
        lw=1.6,
        marker=".",
        ms=3,
        label=label,
    )
    if not isinstance(chain.routing, str):
        spent = 1000 * chain.routing.cost if priced else chain.routing.cost
        axes.plot(
            spent,
            chain.routing.quality,
            color=PAPER.color(0),
            lw=1.2,
            ls="--",
            marker="x",
            ms=4,
            label="cascade routing",
        )
    in_powers(axes)
    unit = _UNITS["money"] if priced else _main_unit(analysis.results)
    dress(axes, "A chain of models", unit, QUALITY)
    legend_below(figure, _handles(axes))
    return figure


def _colored(results: Sequence[CascadeResult]) -> list[tuple[CascadeResult, str, str]]:
    """Each result with its arm's color, and the arm's name as label at its first seed."""
    lines = arm_lines([result.arm for result in results])
    return [(result, *line) for result, line in zip(results, lines, strict=True)]


def _main_unit(results: Sequence[CascadeResult]) -> str:
    """Label of the axis of the main cost."""
    large = results[0].pair.large
    return large.cost_unit if large.is_outcomes else "FLOPs per token (2 per parameter)"


def _points(axes: Any, analysis: Analysis, cost: str) -> list[Line2D]:
    """Draw the token cascades at one of their costs; returns their handles for the legend."""
    return [
        axes.plot(
            [getattr(point, cost)],
            [point.quality],
            marker="D",
            ms=6,
            ls="none",
            color=PAPER.color(len(analysis.results) + number),
            label=plot_label(f"{point.label}, {point.rule}"),
        )[0]
        for number, point in enumerate(analysis.token_cascades)
    ]


def _line(axes: Any, x: Any, y: Any, **options: Any) -> None:
    """A curve at as many points as the eye can tell apart."""
    points = thin(len(x), DRAWN_POINTS)
    axes.plot(x[points], y[points], **options)


def _handles(axes: Any) -> list[Any]:
    return list(axes.get_legend_handles_labels()[0])


def _keys(**lines: str) -> list[Line2D]:
    names = {"random": "random deferral"}
    return [
        Line2D([], [], ls=dashes, lw=0.9, color=PAPER.soft, label=names.get(name, name))
        for name, dashes in lines.items()
    ]
