"""The rules for verdicts. All of them were fixed before the first arm was trained.

A difference is shown if two 95 % intervals exclude zero on the same side: the bootstrap over
examples and seeds, which is too confident with few seeds, and Student's t over seeds, which ignores
the variation over examples.
"""

import math
import statistics
from collections.abc import Sequence

import numpy as np
from scipy import stats
from scipy.optimize import brentq

from caskd.eval.stats.intervals import seed_interval

Interval = tuple[float, float]

ENOUGH_SEEDS = 5
MARGIN = 0.01
"""Smaller differences of quality or area count as no difference."""
MIN_LEAD = 0.05
"""A pool in which the large model leads by less is unfit."""
FIT, UNFIT = "fit", "unfit"
POWER = 0.8
PILOT_DEVIATIONS = (("clean", 0.010), ("noisy", 0.020), ("noisy", 0.030))
"""Labels, and standard deviation over seeds of the paired difference in AUDC, from a pilot with
smaller models."""

ABOVE, BELOW, NOTHING = "above", "below", "no difference shown"
WITHIN, OUTSIDE = f"within {MARGIN:g}", f"outside {MARGIN:g}"
UNDECIDED, REPRODUCED, CONTRADICTED = "undecided", "reproduced", "contradicted"


def verdict(intervals: Sequence[Interval | None], num_seeds: int, needed: int) -> str:
    """The verdict on a difference: above, below, or no difference shown.

    Args:
        intervals: all must exclude zero on the same side; None if an interval has too little data.
        num_seeds: trained seeds.
        needed: from `needed_seeds`; with fewer seeds the verdict is undecided.
    """
    return _with_seeds(_side(intervals), intervals, num_seeds, needed)


def equivalence(intervals: Sequence[Interval | None], num_seeds: int, needed: int) -> str:
    """The verdict on equivalence: within `MARGIN`, outside of it, or no difference shown."""
    known = [interval for interval in intervals if interval is not None]
    if all(low > -MARGIN and high < MARGIN for low, high in known):
        found = WITHIN
    elif all(low > MARGIN for low, _ in known) or all(high < -MARGIN for _, high in known):
        found = OUTSIDE
    else:
        found = NOTHING
    return _with_seeds(found, intervals, num_seeds, needed)


def needed_seeds(planned: int, primary: bool) -> int:
    """Seeds needed for a verdict: five, or the planned number of a side arm."""
    return ENOUGH_SEEDS if primary else max(2, min(ENOUGH_SEEDS, planned))


def word(text: str) -> str:
    """A verdict without its number of seeds."""
    return text.split(" (")[0]


def mark(found: str, wanted: str) -> str:
    """Mark of a claim, from the verdict found and the verdict that it needs."""
    against = {ABOVE: BELOW, BELOW: ABOVE, WITHIN: OUTSIDE}[wanted]
    return {wanted: REPRODUCED, against: CONTRADICTED}.get(word(found), UNDECIDED)


def mark_all(marks: Sequence[str]) -> str:
    """Mark of a claim with several parts: reproduced if all are, contradicted if one is."""
    if CONTRADICTED in marks:
        return CONTRADICTED
    return REPRODUCED if marks and set(marks) == {REPRODUCED} else UNDECIDED


def t_interval(values: Sequence[float]) -> Interval | None:
    """95 % interval of the mean over seeds; None for fewer than two."""
    found = seed_interval(np.asarray(values, float), np.zeros(len(values)))
    return None if found is None else (found.low, found.high)


def smallest_difference(deviation: float, num_seeds: int) -> float:
    """True difference whose 95 % t-interval over seeds excludes zero with probability `POWER`.

    Args:
        deviation: standard deviation of the paired differences over seeds.
        num_seeds: two or more.
    """
    freedom = num_seeds - 1
    reach = stats.t.ppf(0.975, freedom)
    shift = brentq(lambda shift: stats.nct.sf(reach, freedom, shift) - POWER, 0.0, 3.0 * reach)
    return float(shift) * deviation / math.sqrt(num_seeds)


def binned(
    steps: Sequence[int], values: Sequence[float], num_bins: int
) -> list[tuple[int, int, float]]:
    """First step, last step and mean of bins with equal numbers of steps, without empty bins.

    Args:
        steps: in ascending order.
        values: one for each step.
        num_bins: bins from the first to the last step.
    """
    if not steps:
        return []
    first, count = steps[0], steps[-1] - steps[0] + 1
    bins: list[list[tuple[int, float]]] = [[] for _ in range(num_bins)]
    for step, value in zip(steps, values, strict=True):
        bins[(step - first) * num_bins // count].append((step, value))
    return [
        (own[0][0], own[-1][0], statistics.fmean(value for _, value in own)) for own in bins if own
    ]


def _side(intervals: Sequence[Interval | None]) -> str:
    known = [interval for interval in intervals if interval is not None]
    if all(low > 0.0 for low, _ in known):
        return ABOVE
    return BELOW if all(high < 0.0 for _, high in known) else NOTHING


def _with_seeds(
    found: str, intervals: Sequence[Interval | None], num_seeds: int, needed: int
) -> str:
    if num_seeds < needed or not intervals or None in intervals:
        return f"{UNDECIDED} ({num_seeds} seed{'s' if num_seeds != 1 else ''})"
    return found if num_seeds >= ENOUGH_SEEDS else f"{found} ({num_seeds} seeds)"
