"""The figures of the reproduction, drawn from its CSV files alone."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator, NullLocator
from report_contrasts import AVERAGE, BASELINE, MINUS, PLACEBO, PRIMARY_PAIRS
from report_read import Row
from report_runs import ALL

from caskd.eval.report import PAPER, dress, in_percent, legend_below, panels

TITLES = {
    "clean": "clean labels",
    "noisy20-clean-teacher": "20 % wrong, clean teacher",
    "noisy20-noisy-teacher": "20 % wrong, teacher's too",
    "noisy40-clean-teacher": "40 % wrong, clean teacher",
    "noisy40-noisy-teacher": "40 % wrong, teacher's too",
}
"""Condition -> title of its panel."""
DRAWN_ARMS = ("cat-xent", "random-xent", "xent", "cat-dist", "dist", "cat-xent-l", "cat-xent-s",
              "cat-dist-l", "cat-dist-s")  # fmt: skip
"""The position of an arm is the number of its colour in all figures."""
PAIRED = (("cat-dist", "dist"), ("cat-xent-l", "cat-xent"), ("cat-xent-s", "cat-xent"))
"""Differences of the paper's claims that do not compare with xent."""
CURVES = DRAWN_ARMS[:3]
UNMASKED = ("xent", "dist")
Tables = Mapping[str, Sequence[Row]]


def figures(tables: Tables, pool: str) -> Iterator[tuple[str, str, Figure]]:
    """Name, alternative text and figure, for each figure that a pool has data for."""
    drawn: tuple[tuple[str, str, str, Callable[[Sequence[Row]], Figure]], ...] = (
        ("differences", "contrasts", "Differences in AUDC with both 95 % intervals", _differences),
        ("curves", "curves", "Quality over deferral rate, mean over seeds", _curves),
        ("keep", "keep_fraction", "Share of rows that the masks keep, over training", _keep),
        ("rules", "rules", "Area of each deferral rule minus that of average", _rules),
    )
    for name, table, alt, draw in drawn:
        rows = [row for row in tables.get(table, ()) if row["pool"] == pool]
        if rows:
            yield f"{pool}-{name}", alt, draw(rows)


LINEAR = 0.02
TICKS = (-0.1, -0.01, 0.0, 0.01, 0.1)


def color(arm: str) -> str:
    """Colour of an arm."""
    return PAPER.color(DRAWN_ARMS.index(arm))


def _by_condition(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Lines of each condition, in the order of `TITLES`."""
    found = {name: [row for row in rows if row["condition"] == name] for name in TITLES}
    return {name: own for name, own in found.items() if own}


def _differences(rows: Sequence[Row]) -> Figure:
    rows = [row for row in rows if (row["task"], row["measure"]) == (ALL, "audc")]
    there = {row["contrast"] for row in rows}
    wanted = (*PRIMARY_PAIRS, PLACEBO, *((arm, BASELINE) for arm in DRAWN_ARMS[3:]), *PAIRED)
    order = [name for pair in wanted if (name := MINUS.join(pair)) in there]
    rows = [row for row in rows if row["contrast"] in order]
    conditions = _by_condition(rows)
    figure, found = panels(len(conditions), sharey=True, sharex=True)
    for axes, (condition, own) in zip(found, conditions.items(), strict=True):
        for row in own:
            _both_intervals(axes, order.index(row["contrast"]), row,
                            color(row["contrast"].split(MINUS)[0]))  # fmt: skip
        axes.axvline(0.0, color=PAPER.soft, lw=0.9, ls="--")
        # Logarithmic beyond LINEAR: a student-only mask loses ten times what others gain.
        axes.set_xscale("symlog", linthresh=LINEAR, linscale=1.2)
        axes.set_xticks(TICKS, [f"{tick:g}" for tick in TICKS])
        axes.xaxis.set_minor_locator(NullLocator())
        dress(axes, TITLES[condition], f"AUDC, log beyond {LINEAR:g}")
    labels = [name.replace(MINUS, " \N{MINUS SIGN} ") for name in order]
    found[0].set_yticks(range(len(order)), labels)
    found[0].set_ylim(len(order) - 0.5, -0.5)
    _interval_legend(figure, "bootstrap over examples and seeds")
    return figure


def _both_intervals(axes: Any, y: float, row: Row, ink: str) -> None:
    """Draw the mean as a dot, the bootstrap interval thick, the t-interval over seeds thin."""
    if row["low"] is not None:
        axes.plot([row["low"], row["high"]], [y, y], color=ink, lw=4.5, alpha=0.35,
                  solid_capstyle="butt")  # fmt: skip
    if row["t_low"] is not None:
        axes.plot([row["t_low"], row["t_high"]], [y, y], color=ink, lw=1.1, marker="|", ms=5)
    axes.plot([row["mean"]], [y], color=ink, marker="o", ms=4)


def _interval_legend(figure: Figure, thick: str) -> None:
    soft = PAPER.soft
    legend_below(figure, [
        Line2D([], [], color=soft, lw=4.5, alpha=0.35, label=thick),
        Line2D([], [], color=soft, lw=1.1, marker="|", ms=5, label="t over seeds"),
    ])  # fmt: skip


def _curves(rows: Sequence[Row]) -> Figure:
    conditions = _by_condition(rows)
    figure, found = panels(len(conditions), sharey=True)
    for axes, (condition, own) in zip(found, conditions.items(), strict=True):
        for arm in CURVES:
            points = [row for row in own if row["arm"] == arm]
            rate = [row["deferral_rate"] for row in points]
            axes.plot(rate, [row["random"] for row in points], color=color(arm), lw=0.8, ls="--")
            axes.plot(rate, [row["quality"] for row in points], color=color(arm), lw=1.4)
        in_percent(axes)
        axes.set_xticks([0.0, 0.25, 0.5, 0.75])
        first = axes.get_subplotspec().is_first_col()
        dress(axes, TITLES[condition], "deferral rate", "mean quality" if first else None)
    lines = [Line2D([], [], color=color(arm), lw=1.4, label=arm) for arm in CURVES]
    random = Line2D([], [], color=PAPER.soft, lw=0.8, ls="--", label="random deferral")
    legend_below(figure, [*lines, random])
    return figure


def _keep(rows: Sequence[Row]) -> Figure:
    rows = [row for row in rows if row["arm"] not in UNMASKED]
    conditions = _by_condition(rows)
    figure, found = panels(max(1, len(conditions)), sharey=True)
    arms = [arm for arm in DRAWN_ARMS if any(row["arm"] == arm for row in rows)]
    for axes, (condition, own) in zip(found, conditions.items(), strict=False):
        for arm in arms:
            bins = [row for row in own if row["arm"] == arm]
            middle = [(row["first_step"] + row["last_step"]) / 2 for row in bins]
            ends = ([row[f"{name}_seed"] for row in bins] for name in ("lowest", "highest"))
            axes.fill_between(middle, *ends, color=color(arm), alpha=0.15, lw=0)
            axes.plot(middle, [row["keep_fraction"] for row in bins], color=color(arm), lw=1.4,
                      ls=_dashes(arm))  # fmt: skip
        first = axes.get_subplotspec().is_first_col()
        dress(axes, TITLES[condition], "step", "kept rows" if first else None)
    legend_below(figure, [
        Line2D([], [], color=color(arm), lw=1.4, ls=_dashes(arm), label=arm) for arm in arms
    ])  # fmt: skip
    return figure


def _dashes(arm: str) -> str:
    """Line style: a random mask coincides with its masked run; there are more arms than colours."""
    return "--" if arm.startswith("random") else ":" if arm in DRAWN_ARMS[-2:] else "-"


def _rules(rows: Sequence[Row]) -> Figure:
    arms = [arm for arm in DRAWN_ARMS if any(row["arm"] == arm for row in rows)]
    rules = list(dict.fromkeys(row["rule"] for row in rows if row["rule"] != AVERAGE))
    figure, found = panels(len(arms), sharey=True, sharex=True)
    for axes, arm in zip(found, arms, strict=True):
        for row in rows:
            if row["arm"] == arm and row["rule"] in rules:
                _both_intervals(axes, rules.index(row["rule"]), row, color(arm))
        axes.axvline(0.0, color=PAPER.soft, lw=0.9, ls="--")
        axes.xaxis.set_major_locator(MaxNLocator(4))
        dress(axes, f"rules on {arm}", "AUDC minus that of average")
    found[0].set_yticks(range(len(rules)), rules)
    found[0].set_ylim(len(rules) - 0.5, -0.5)
    _interval_legend(figure, "bootstrap over examples")
    return figure
