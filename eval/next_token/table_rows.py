"""The numbers of a report on next tokens, and the rows of its tables."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from caskd.eval.curves import curve_figures
from caskd.eval.next_token.measure import MAIN_RULE, StudentResult
from caskd.eval.next_token.plot import MAX_POINTS
from caskd.eval.report import difference_row
from caskd.eval.study import ALL_TASKS, Contrast
from caskd.store.io import strip_control
from caskd.store.spacing import thin

Found = Sequence[Sequence[Contrast]]
"""Differences by figure, the area first."""


@dataclass(frozen=True)
class NextTokenAnalysis:
    """The numbers of one report."""

    summary: dict[str, Any]
    results: Sequence[StudentResult]
    differences: Found
    shares: Sequence[Mapping[str, Any]]


def student_rows(analysis: NextTokenAnalysis) -> Iterator[dict[str, Any]]:
    seen: list[str] = []
    for result in analysis.results:
        low, high = result.area_interval()
        interval = {"audc_low": low, "audc_high": high}
        keys = {"arm": result.arm, "seed": seen.count(result.arm)}
        seen.append(result.arm)
        yield {
            "student": result.label,
            "task": ALL_TASKS,
            **curve_figures(result.curve),
            **interval,
            **keys,
        }
        for task, curve in result.tasks.items():
            none = dict.fromkeys(interval)
            yield {
                "student": result.label,
                "task": strip_control(task),
                **curve_figures(curve),
                **none,
                **keys,
            }


def rule_rows(analysis: NextTokenAnalysis) -> Iterator[dict[str, Any]]:
    for result in analysis.results:
        for rule in result.curves:
            yield {"student": result.label, "rule": rule, **result.figures(rule)}


def curve_rows(analysis: NextTokenAnalysis) -> Iterator[dict[str, Any]]:
    for result in analysis.results:
        for rule, curve in result.curves.items():
            for point in thin(curve.deferral_rate.size, MAX_POINTS):
                yield {
                    "student": result.label,
                    "rule": rule,
                    "deferral_rate": float(curve.deferral_rate[point]),
                    "threshold": float(curve.threshold[point]),
                    "accuracy": float(curve.quality[point]),
                    "random": float(curve.random[point]),
                }


def difference_rows(analysis: NextTokenAnalysis) -> Iterator[dict[str, Any]]:
    for contrasts in analysis.differences:
        for contrast in contrasts:
            yield difference_row(contrast, MAIN_RULE)
