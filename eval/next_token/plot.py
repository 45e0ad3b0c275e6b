"""The figure of a report on next tokens."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from caskd.eval.next_token.measure import OFFLINE_RULES, StudentResult
from caskd.eval.report import PAPER, arm_lines, dress, in_percent, legend_below, panels
from caskd.store.spacing import thin

MAX_POINTS = 1001
_DASHES = dict(zip(OFFLINE_RULES, ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1))), strict=True))


def next_token_figure(results: Sequence[StudentResult]) -> Figure:
    """Accuracy over deferral rate by student, and the gain of each rule over random deferral."""
    figure, (accuracy, gain) = panels(2)
    lines = arm_lines([result.arm for result in results])
    for result, (color, label) in zip(results, lines, strict=True):
        curve = result.curve
        points = thin(curve.deferral_rate.size, MAX_POINTS)
        accuracy.plot(
            curve.deferral_rate[points], curve.quality[points], color=color, lw=1.5, label=label
        )
        accuracy.plot([0, 1], curve.random[[0, -1]], color=color, lw=0.9, ls="--")
        oracle = (curve.oracle_rate, curve.oracle_quality)
        accuracy.plot(*oracle, color=color, lw=0.9, ls=":")
        for rule, other in result.curves.items():
            points = thin(other.deferral_rate.size, MAX_POINTS)
            above = (other.quality - other.random)[points]
            gain.plot(other.deferral_rate[points], above, color=color, ls=_DASHES[rule], lw=1.3)
    dress(accuracy, "Next-token accuracy", "deferral rate", "accuracy")
    dress(gain, "Gain over random deferral, by rule", "deferral rate", "accuracy above random")
    for axes in (accuracy, gain):
        in_percent(axes)
    keys: dict[str, Any] = {"random deferral": "--", "oracle": ":"}
    shown = {rule for result in results for rule in result.curves}
    keys |= {f"right: {rule}": dashes for rule, dashes in _DASHES.items() if rule in shown}
    handles = [
        Line2D([], [], ls=dashes, lw=0.9, color=PAPER.soft, label=name)
        for name, dashes in keys.items()
    ]
    legend_below(figure, [*accuracy.get_legend_handles_labels()[0], *handles])
    return figure
