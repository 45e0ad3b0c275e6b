"""What counts as shown. All of it was settled before the first arm was trained.

A difference is shown where two 95 % intervals agree: the bootstrap over examples and seeds, which
is too sure with few seeds, and Student's t over the seeds alone, which does not see the examples.
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
"""Differences of quality or area within this are none."""
MIN_LEAD = 0.05
"""A pool in which the large model leads by less is unfit."""
FIT, UNFIT = "fit", "unfit"
POWER = 0.8
PILOT_DEVIATIONS = (("clean", 0.010), ("noisy", 0.020), ("noisy", 0.030))
"""Of the paired difference in AUDC over seeds, from a pilot with smaller models, by its labels."""

ABOVE, BELOW, NOTHING = "above", "below", "no difference shown"
WITHIN, OUTSIDE = f"within {MARGIN:g}", f"outside {MARGIN:g}"
UNDECIDED, REPRODUCED, CONTRADICTED = "undecided", "reproduced", "contradicted"


def verdict(intervals: Sequence[Interval | None], num_seeds: int, needed: int) -> str:
    """What a difference shows: above, below, or nothing.

    Args:
        intervals: all have to leave out zero on the same side; None where there is too little for
            one.
        num_seeds: that were trained.
        needed: seeds, as `needed_seeds` has it; with fewer it is undecided whatever the intervals.
    """
    return _with_seeds(_side(intervals), intervals, num_seeds, needed)


def equivalence(intervals: Sequence[Interval | None], num_seeds: int, needed: int) -> str:
    """Whether a difference is none: within `MARGIN`, outside of it, or nothing shown."""
    known = [one for one in intervals if one is not None]
    if all(low > -MARGIN and high < MARGIN for low, high in known):
        found = WITHIN
    elif all(low > MARGIN for low, _ in known) or all(high < -MARGIN for _, high in known):
        found = OUTSIDE
    else:
        found = NOTHING
    return _with_seeds(found, intervals, num_seeds, needed)


def needed_seeds(planned: int, primary: bool) -> int:
    """Seeds without which nothing is decided: five, or what was planned of a side arm."""
    return ENOUGH_SEEDS if primary else max(2, min(ENOUGH_SEEDS, planned))


def word(text: str) -> str:
    """A verdict without its number of seeds."""
    return text.split(" (")[0]


def mark(found: str, wanted: str) -> str:
    """What becomes of a claim that a verdict speaks to."""
    against = {ABOVE: BELOW, BELOW: ABOVE, WITHIN: OUTSIDE}[wanted]
    return {wanted: REPRODUCED, against: CONTRADICTED}.get(word(found), UNDECIDED)


def mark_all(marks: Sequence[str]) -> str:
    """A claim of several parts holds where all do, and falls with one."""
    if CONTRADICTED in marks:
        return CONTRADICTED
    return REPRODUCED if marks and set(marks) == {REPRODUCED} else UNDECIDED


def t_interval(values: Sequence[float]) -> Interval | None:
    """95 % interval of the mean over seeds; None of fewer than two."""
    found = seed_interval(np.asarray(values, float), np.zeros(len(values)))
    return None if found is None else (found.low, found.high)


def smallest_difference(deviation: float, num_seeds: int) -> float:
    """True difference of which a 95 % t-interval over seeds leaves out zero four times in five.

    Args:
        deviation: of the paired differences over seeds.
        num_seeds: two or more.
    """
    freedom = num_seeds - 1
    reach = stats.t.ppf(0.975, freedom)
    shift = brentq(lambda shift: stats.nct.sf(reach, freedom, shift) - POWER, 0.0, 3.0 * reach)
    return float(shift) * deviation / math.sqrt(num_seeds)


def binned(
    steps: Sequence[int], values: Sequence[float], num_bins: int
) -> list[tuple[int, int, float]]:
    """Means over bins of as many steps each: first step, last step, mean. Empty ones are left out.

    Args:
        steps: rising.
        values: one for each step.
        num_bins: that divide the steps from the first to the last.
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
    known = [one for one in intervals if one is not None]
    if all(low > 0.0 for low, _ in known):
        return ABOVE
    return BELOW if all(high < 0.0 for _, high in known) else NOTHING


def _with_seeds(
    found: str, intervals: Sequence[Interval | None], num_seeds: int, needed: int
) -> str:
    if num_seeds < needed or not intervals or None in intervals:
        return f"{UNDECIDED} ({num_seeds} seed{'s' if num_seeds != 1 else ''})"
    return found if num_seeds >= ENOUGH_SEEDS else f"{found} ({num_seeds} seeds)"
