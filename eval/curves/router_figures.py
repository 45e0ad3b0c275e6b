"""Figures of the router benchmarks: RouterArena's score and RouterBench's AIQ, and domination."""

import math

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]

BETA, MOST, LEAST = 0.1, 200.0, 0.0044
"""RouterArena's weight of accuracy, and the costs of 1,000 queries (USD) that score 0 and 1."""


def arena_score(cost: float, accuracy: float) -> float | None:
    """RouterArena's score (arXiv 2510.00202).

    With C = (log2 200 - log2 c) / (log2 200 - log2 0.0044) it is (1 + b) A C / (b A + C), b = 0.1.

    Args:
        cost: c, the cost of 1,000 queries in USD.
        accuracy: A, mean quality from 0 to 1.

    Returns:
        The score; None where it is not defined: a cost of 0, a cost above 200, or an accuracy
        outside [0, 1].
    """
    if not (0.0 < cost <= MOST and 0.0 <= accuracy <= 1.0):
        return None
    cheap = (math.log2(MOST) - math.log2(cost)) / (math.log2(MOST) - math.log2(LEAST))
    below = BETA * accuracy + cheap
    return (1.0 + BETA) * accuracy * cheap / below if below > 0.0 else 0.0


def aiq(cost: FloatArray, quality: FloatArray) -> float | None:
    """Average improvement in quality (RouterBench, arXiv 2403.12031, section 3).

    The area under the non-decreasing convex hull of the points from the least to the largest cost,
    divided by that range: its mean height.

    Args:
        cost: [P] mean cost of each setting.
        quality: [P] mean quality of each setting.

    Returns:
        The mean height; None if all costs are equal.
    """
    order = np.lexsort((-quality, cost))
    hull: list[tuple[float, float]] = []
    best = -math.inf
    for x, y in zip(cost[order].tolist(), quality[order].tolist(), strict=True):
        if y <= best:  # dearer and no better
            continue
        best = y
        while len(hull) > 1 and _is_below(hull[-1], hull[-2], (x, y)):
            hull.pop()
        hull.append((x, y))
    least, most = float(cost.min()), float(cost.max())
    if most <= least:
        return None
    xs, ys = np.array([*hull, (most, best)]).T
    return float(np.trapezoid(ys, xs) / (most - least))


def _is_below(
    middle: tuple[float, float], before: tuple[float, float], after: tuple[float, float]
) -> bool:
    """Whether a point lies on or below the line between its neighbours."""
    rise = (after[1] - before[1]) * (middle[0] - before[0])
    return (middle[1] - before[1]) * (after[0] - before[0]) <= rise


def dominates(first: tuple[float, float], second: tuple[float, float]) -> bool:
    """Whether a model of this cost and quality beats another: no dearer, no worse, not equal."""
    return first[0] <= second[0] and first[1] >= second[1] and first != second
