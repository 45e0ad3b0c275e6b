"""The sections that open and close the page: the decision with its slider, and the terms."""

import json
from collections.abc import Mapping
from typing import Any

import numpy as np

from caskd.eval.report.page import Picture, Section, Slider
from caskd.eval.report.terms import TERMS
from caskd.eval.study import Analysis, CostLine, Decision, estimate_text, number, sentence


def decision(analysis: Analysis, _: Mapping[str, Picture]) -> Section:
    """What to do, the figures behind it, and a slider over all thresholds of the main rule."""
    found = analysis.decision
    return Section(
        lead=sentence(found),
        texts=[_figures(found), _target(analysis, found)],
        slider=_slider(analysis, found),
        notes=[_rule(found)],
    )


def terms(_: Analysis, __: Mapping[str, Picture]) -> Section:
    """The legend."""
    return Section("Terms", terms=TERMS)


def _figures(found: Decision) -> str:
    point = found.point
    threshold = "none" if np.isinf(point.threshold) else f"{point.threshold:.6g}"
    cost = "The cost is not known (pass --prices)."
    if point.cost is not None:
        cost = f"Cost: {point.cost:.4g} ({found.cost_unit})."
    return (
        f"Rule {found.rule}, threshold {threshold}, small model {found.small}. Quality minus that "
        f"of {found.large}: {estimate_text(point.lead, '+')}. {cost}"
    )


def _target(analysis: Analysis, found: Decision) -> str:
    """Where the same small model reaches the target quality, if less quality is enough."""
    index = next(i for i, one in enumerate(analysis.results) if one.label == found.small)
    target = analysis.comparisons.target
    quality = number(target.quality)
    if not target.reached[index]:
        return f"No threshold of {found.small} reaches the target quality {quality}."
    return (
        f"The target quality {quality} is reached by deferring {100 * target.rate[index]:.1f} % "
        f"of its answers (--target-quality sets it)."
    )


def _rule(found: Decision) -> str:
    how = (
        f"It is the best point for {found.constraint} over all small models, rules and thresholds."
        if found.constraint
        else "It is the cheapest threshold of the main rule that is not shown to be worse than the "
        "large model: the 95 % interval of its quality minus the large model's, over resampled "
        "questions, reaches zero. With few questions that interval is wide, and not shown to be "
        "worse is not shown to be equal. --operating-point 'quality>=X' demands a quality instead."
    )
    where = (
        "The calibration examples chose it, the test examples measure it."
        if found.chosen_on == "calibration"
        else "The examples that chose it also measure it, so its figures are optimistic. Pass "
        "--calibration 0.5 to choose it on other examples."
    )
    return f"How the decision is made: {how} {where}"


def _slider(analysis: Analysis, found: Decision) -> Slider:
    series = [
        slider_series(line, found.point.deferral_rate if line.small == found.small else 0.0)
        for line in analysis.cost_lines
    ]
    return Slider(
        series=json.dumps(series, allow_nan=False, separators=(",", ":")),
        unit=found.cost_unit.removeprefix("cost "),
        names=[line.small for line in analysis.cost_lines],
        first=next(i for i, line in enumerate(analysis.cost_lines) if line.small == found.small),
    )


def slider_series(line: CostLine, rate: float) -> dict[str, Any]:
    """Numbers of one small model's slider, to six digits.

    Args:
        line: its points.
        rate: deferral rate near which the slider starts.
    """
    points, large = line.points, line.large_cost
    costs = [point.cost for point in points if point.cost is not None]
    return {
        "threshold": [None if np.isinf(p.threshold) else _short(p.threshold) for p in points],
        "rate": [_short(point.deferral_rate) for point in points],
        "quality": [_short(point.quality.mean) for point in points],
        "low": [_short(point.quality.low) for point in points],
        "high": [_short(point.quality.high) for point in points],
        "cost": None if large is None else [_short(cost) for cost in costs],
        "large": None if large is None else _short(large),
        "start": min(range(len(points)), key=lambda i: abs(points[i].deferral_rate - rate)),
    }


def _short(value: float) -> float:
    return float(f"{value:.6g}")
