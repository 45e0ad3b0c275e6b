"""Deferral curves: the quality of a cascade at every threshold, in numpy alone.

Legend: E examples, P points of the curve (distinct scores + 1).

An example is deferred to the large model if its score >= threshold: higher scores go first.
Examples with equal scores are one block: they are deferred together or not at all, and between two
points the curve is the straight line that deferring a random part of the block gives. Every example
weighs the same. Sums run over sorted examples: permuting the input changes no bit of the output.
"""

import math
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from caskd.store.errors import UsageError

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

MIN_GAP = 0.05
"""Smallest lead of the large model at which figures relative to the gap are stated."""


@dataclass(frozen=True, eq=False)
class DeferralCurve:
    """A cascade over all thresholds; arrays have one value per point, from rate 0 to rate 1."""

    deferral_rate: FloatArray
    """[P] share of the examples deferred: from exactly 0 to exactly 1."""
    quality: FloatArray
    """[P] mean quality of the cascade, a1 + a2."""
    threshold: FloatArray
    """[P] defer where score >= threshold; the first is infinity."""
    a1: FloatArray
    """[P] part of the quality from kept answers of the small model (CAT eq. 9, over E)."""
    a2: FloatArray
    """[P] part of the quality from the large model's answers to deferred examples."""
    random: FloatArray
    """[P] quality of deferring the same rate at random."""
    oracle_rate: FloatArray = field(repr=False)
    """[O] deferral rates of the oracle, which defers by large minus small quality."""
    oracle_quality: FloatArray = field(repr=False)
    """[O] quality of the oracle at `oracle_rate`."""
    audc: float
    """Area under quality over deferral rate (trapezoid)."""
    random_audc: float
    """Area under the random line: the mean of the two models' qualities."""
    oracle_audc: float
    """Area under the oracle's curve, which no score exceeds."""
    num_examples: int

    @property
    def quality_small(self) -> float:
        """Mean quality of the small model alone."""
        return float(self.quality[0])

    @property
    def quality_large(self) -> float:
        """Mean quality of the large model alone."""
        return float(self.quality[-1])

    @property
    def gap(self) -> float:
        """Lead of the large model over the small one."""
        return self.quality_large - self.quality_small

    @property
    def apgr(self) -> float | None:
        """Average performance gap recovered (RouteLLM, arXiv 2406.18665); None below `MIN_GAP`."""
        return (self.audc - self.quality_small) / self.gap if self.gap >= MIN_GAP else None

    @property
    def percent_over_random(self) -> float | None:
        """Gain in area over the random line, in percent of that line; None below `MIN_GAP`."""
        if self.gap < MIN_GAP or self.random_audc <= 0.0:
            return None
        return 100.0 * (self.audc / self.random_audc - 1.0)

    def quality_at(self, rate: float) -> float:
        """Quality at a deferral rate, on the straight line between two points.

        Raises:
            UsageError: the rate is not in [0, 1].
        """
        if not 0.0 <= rate <= 1.0:
            raise UsageError(
                f"deferral rate {rate}: expected a number from 0 to 1; pass another rate"
            )
        return float(np.interp(rate, self.deferral_rate, self.quality))

    def rate_for(self, quality: float) -> float | None:
        """Smallest deferral rate that reaches a quality; None if no rate does.

        Raises:
            UsageError: the quality is not a number.
        """
        if math.isnan(quality):
            raise UsageError("quality nan: expected a number such as 0.86; pass another quality")
        reached = np.flatnonzero(self.quality >= quality)
        if not reached.size:
            return None
        point = int(reached[0])
        if point == 0:
            return 0.0
        # A line between the last point below and the first point at or above.
        x0, x1 = self.deferral_rate[point - 1 : point + 1]
        y0, y1 = self.quality[point - 1 : point + 1]
        return float(min(x0 + (x1 - x0) * (quality - y0) / (y1 - y0), x1))

    def cpt(self, share: float) -> float | None:
        """Call-performance threshold: smallest deferral rate that recovers a share of the gap.

        As in RouteLLM (arXiv 2406.18665); None if no rate does, or below `MIN_GAP`.
        """
        if self.gap < MIN_GAP:
            return None
        return self.rate_for(self.quality_small + share * self.gap)


def deferral_curve(
    score: npt.ArrayLike, small_quality: npt.ArrayLike, large_quality: npt.ArrayLike
) -> DeferralCurve:
    """Quality of the cascade over every deferral threshold.

    Args:
        score: [E] deferral score; the highest is deferred first, equal scores together. An infinite
            one counts as the largest number of its sign (`finite_scores`).
        small_quality: [E] quality of the small model's answer.
        large_quality: [E] quality of the large model's answer to the same example.

    Returns:
        The curve with its area, the random line, the oracle and the A1/A2 parts. Its end points are
        exactly the means of the two qualities, summed without rounding.

    Raises:
        UsageError: an array is empty, not one-dimensional, of another length, or not finite; or a
            score is NaN.
    """
    score = finite_scores(_vector("score", score, finite=False))
    small = _vector("small_quality", small_quality)
    large = _vector("large_quality", large_quality)
    if not score.size == small.size == large.size:
        sizes = f"{score.size}, {small.size} and {large.size}"
        raise UsageError(
            f"score, small_quality and large_quality: got {sizes} values; expected one of each "
            "per example; pass arrays of one length"
        )
    rate, quality, threshold, a1, a2 = _points(score, small, large)
    oracle_rate, oracle_quality, *_ = _points(large - small, small, large)
    return DeferralCurve(
        deferral_rate=rate,
        quality=quality,
        threshold=threshold,
        a1=a1,
        a2=a2,
        random=quality[0] + rate * (quality[-1] - quality[0]),
        oracle_rate=oracle_rate,
        oracle_quality=oracle_quality,
        audc=_area(rate, quality),
        random_audc=float((quality[0] + quality[-1]) / 2.0),
        oracle_audc=_area(oracle_rate, oracle_quality),
        num_examples=score.size,
    )


def defer_order(score: FloatArray, *ties: FloatArray) -> tuple[IntArray, IntArray]:
    """Order in which examples are deferred, and the end of each block of equal scores.

    Args:
        score: [E] deferral score.
        ties: arrays [E] that order the examples inside a block, so that sums do not depend on the
            order of the input.

    Returns:
        `order` [E] of example indices and `ends` [P], the number of examples deferred at each point
        of the curve, from 0 to E.
    """
    order = np.lexsort((*reversed(ties), -score)).astype(np.int64)
    ordered = score[order]
    changes = np.flatnonzero(ordered[1:] != ordered[:-1]) + 1
    return order, np.concatenate(([0], changes, [score.size])).astype(np.int64)


def finite_scores(score: FloatArray) -> FloatArray:
    """Scores with infinity as the largest float, so that a threshold of infinity defers nothing."""
    largest = np.finfo(np.float64).max
    return np.clip(score, -largest, largest)


def deferred_mean(score: FloatArray, value: FloatArray) -> FloatArray:
    """Sum of `value` [E] over the deferred examples, divided by E, at each point [P]."""
    order, ends = defer_order(score, value)
    return _running_sum(value[order])[ends] / score.size


def _points(
    score: FloatArray, small: FloatArray, large: FloatArray
) -> tuple[FloatArray, FloatArray, FloatArray, FloatArray, FloatArray]:
    """Deferral rate, quality, threshold, A1 and A2, each [P]."""
    num_examples = score.size
    order, ends = defer_order(score, small, large)
    # Kept answers are summed from the end that is never deferred, so that A1 ends at exactly 0.
    kept = _running_sum(small[order][::-1])[::-1][ends] / num_examples
    deferred = _running_sum(large[order])[ends] / num_examples
    kept[0] = math.fsum(small) / num_examples
    deferred[-1] = math.fsum(large) / num_examples
    threshold = np.concatenate(([np.inf], score[order][ends[1:] - 1]))
    return ends / num_examples, kept + deferred, threshold, kept, deferred


def _running_sum(value: FloatArray) -> FloatArray:
    """Sums [E + 1] of the first 0, 1, ... E values."""
    return np.concatenate(([0.0], np.cumsum(value)))


def _area(rate: FloatArray, quality: FloatArray) -> float:
    return float(np.trapezoid(quality, rate))


def _vector(name: str, values: npt.ArrayLike, *, finite: bool = True) -> FloatArray:
    array: npt.NDArray[Any] = np.asarray(values)
    if array.ndim != 1 or array.size == 0:
        raise UsageError(
            f"{name}: shape is {array.shape}; expected one number per example and at least one; "
            "pass a vector"
        )
    try:
        vector = array.astype(np.float64)
    except (TypeError, ValueError):
        raise UsageError(
            f"{name}: type is {array.dtype}; expected numbers; convert it to float"
        ) from None
    bad = np.flatnonzero(~np.isfinite(vector) if finite else np.isnan(vector))
    if bad.size:
        raise UsageError(
            f"{name}[{bad[0]}] = {vector[bad[0]]} ({bad.size:,} such values); expected "
            f"{'finite numbers' if finite else 'numbers'}; remove these examples or fix them"
        )
    return vector
