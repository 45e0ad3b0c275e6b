"""The operating point: small model, rule and threshold that meet a constraint best.

Legend: E examples, P points of a curve.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from caskd.eval.curves import DeferralCurve, Price, Shares, deferral_curve
from caskd.eval.outcomes import MONEY
from caskd.eval.rules import Pair, RuleScores
from caskd.eval.stats import McNemar, interval, mcnemar, mean_replicates
from caskd.eval.study.measure import CascadeResult, cost_shares, main_shares
from caskd.store.errors import UsageError

FloatArray = npt.NDArray[np.float64]

_CONSTRAINT = re.compile(r"\s*(quality|cost|deferral_rate)\s*(>=|<=)\s*([-+.\deE]+)\s*")


@dataclass(frozen=True)
class Constraint:
    """A bound on one quantity of the cascade; the others are optimised within it."""

    quantity: str
    """quality (a lower bound), cost or deferral_rate (upper bounds)."""
    bound: float

    def __str__(self) -> str:
        return f"{self.quantity}{'>=' if self.quantity == 'quality' else '<='}{self.bound:g}"


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over the test examples with its 95 % interval."""

    mean: float
    low: float
    high: float


def estimate(mean: float, replicates: FloatArray) -> Estimate:
    """A mean with the interval of its bootstrap replicates [B]."""
    low, high = interval(replicates)
    return Estimate(mean=float(mean), low=low, high=high)


@dataclass(frozen=True, eq=False, kw_only=True)
class OperatingPoint:
    """A small model, a rule, a threshold, and their estimates on the test split."""

    constraint: Constraint
    result: CascadeResult
    """The chosen small model."""
    scores: RuleScores
    threshold: float
    """Defer where score >= threshold; infinity never defers."""
    chosen_on: str
    """Split that chose it: "calibration", or "test", whose estimates are then optimistic."""
    quality: Estimate
    deferral_rate: Estimate
    cost: Estimate
    cost_unit: str
    seconds: float | None
    """Mean per example; None without times."""
    against_large: McNemar
    """The cascade against the large model alone."""

    @property
    def met(self) -> bool:
        """Whether the test split meets the constraint."""
        mean = getattr(self, self.constraint.quantity).mean
        bound = self.constraint.bound
        return bool(mean >= bound if self.constraint.quantity == "quality" else mean <= bound)


def parse_constraint(text: str) -> Constraint:
    """Read `quality>=0.86`, `cost<=5e8` or `deferral_rate<=0.3`.

    Raises:
        UsageError: the text is none of these, or its number is none of a rate or a cost.
    """
    match = _CONSTRAINT.fullmatch(text)
    try:
        quantity, sign, bound = match.groups() if match else ("", "", "")
        constraint = Constraint(quantity, float(bound))
    except ValueError:
        match = None
    if (
        match is None
        or (sign == ">=") != (quantity == "quality")
        or not np.isfinite(constraint.bound)
    ):
        raise UsageError(
            f"--operating-point {text!r}: expected quality>=0.86, cost<=5e8 or deferral_rate<=0.3, "
            "in quotes; pass one of these forms"
        )
    highest = 1.0 if quantity == "deferral_rate" else np.inf
    if quantity != "quality" and not 0.0 <= constraint.bound <= highest:
        expected = "from 0 to 1" if quantity == "deferral_rate" else "of 0 or more"
        raise UsageError(
            f"--operating-point '{constraint}': expected a number {expected}; pass another number"
        )
    return constraint


def check_quality_bounds(
    target_quality: float | None, constraint: Constraint | None, *, bounded: bool
) -> None:
    """Refuse qualities that no answer can have.

    Args:
        target_quality: of --target-quality.
        constraint: of --operating-point.
        bounded: whether the metric's quality is from 0 to 1.

    Raises:
        UsageError: a quality is not from 0 to 1, or not finite.
    """
    quality = constraint.bound if constraint and constraint.quantity == "quality" else None
    for shown, value in (
        (f"--target-quality {target_quality}", target_quality),
        (f"--operating-point '{constraint}'", quality),
    ):
        low, high = (0.0, 1.0) if bounded else (-np.finfo(float).max, np.finfo(float).max)
        if value is not None and not low <= value <= high:
            raise UsageError(
                f"{shown}: expected a {'quality from 0 to 1' if bounded else 'finite number'}; "
                "pass another number"
            )


def choose(
    constraint: Constraint,
    results: Sequence[CascadeResult],
    calibrations: Sequence[Pair] | None,
    prices: Mapping[str, Price] | None,
) -> OperatingPoint:
    """The best of all small models, rules and thresholds.

    A bound on quality is met at the lowest cost, a bound on cost or deferral rate at the highest
    quality. The calibration split, if there is one, chooses the threshold; estimates are always of
    the test split.

    Raises:
        UsageError: no cascade meets the constraint; the message has the nearest value.
    """
    best: tuple[tuple[float, float], CascadeResult, RuleScores, float] | None = None
    nearest: list[float] = []
    for result, pair, scores in _candidates(results, calibrations):
        score = scores.apply(pair) if calibrations else scores.score
        curve = deferral_curve(score, pair.small_quality, pair.large_quality)
        cost = point_shares(pair, scores, prices).mean(score)
        point = _best_point(constraint, curve, cost)
        values = {"quality": curve.quality, "deferral_rate": curve.deferral_rate, "cost": cost}
        nearest.append(float(_extreme(constraint, values[constraint.quantity])))
        if point is None:
            continue
        quality, spent = float(curve.quality[point]), float(cost[point])
        rank = (-spent, quality) if constraint.quantity == "quality" else (quality, -spent)
        if best is None or rank > best[0]:
            best = rank, result, scores, float(curve.threshold[point])
    if best is None:
        raise UsageError(
            f"--operating-point '{constraint}': no cascade meets it; expected at best "
            f"{constraint.quantity} {_extreme(constraint, np.array(nearest)):.6g}, the nearest; "
            "set a looser bound"
        )
    _, result, scores, threshold = best
    return _estimate(
        constraint, result, scores, threshold, prices, "calibration" if calibrations else "test"
    )


def _candidates(
    results: Sequence[CascadeResult], calibrations: Sequence[Pair] | None
) -> Iterator[tuple[CascadeResult, Pair, RuleScores]]:
    for index, result in enumerate(results):
        pair = calibrations[index] if calibrations else result.pair
        for rule in result.rules.values():
            yield result, pair, rule.scores


def _best_point(constraint: Constraint, curve: DeferralCurve, cost: FloatArray) -> int | None:
    if constraint.quantity == "quality":
        fits = np.flatnonzero(curve.quality >= constraint.bound)
        order = np.lexsort((-curve.quality[fits], cost[fits]))
    else:
        limited = cost if constraint.quantity == "cost" else curve.deferral_rate
        fits = np.flatnonzero(limited <= constraint.bound)
        order = np.lexsort((cost[fits], -curve.quality[fits]))
    return int(fits[order[0]]) if fits.size else None


def _extreme(constraint: Constraint, values: FloatArray) -> float:
    return float(values.max() if constraint.quantity == "quality" else values.min())


def point_shares(pair: Pair, scores: RuleScores, prices: Mapping[str, Price] | None) -> Shares:
    """Cost of each example: money with prices, else the main cost."""
    if prices is not None and not pair.small.is_outcomes:
        return cost_shares(pair, scores, prices)["money"]
    if not pair.has_cost:
        raise UsageError(
            "--large: a model's number of parameters is not known, nor its FLOPs; expected a price "
            "list; pass --prices FILE"
        )
    return main_shares(pair, saves=scores.before_generation)


def _estimate(
    constraint: Constraint,
    result: CascadeResult,
    scores: RuleScores,
    threshold: float,
    prices: Mapping[str, Price] | None,
    chosen_on: str,
) -> OperatingPoint:
    pair = result.pair
    deferred = scores.score >= threshold
    seconds = cost_shares(pair, scores, None).get("seconds")
    quality = np.where(deferred, pair.large_quality, pair.small_quality)
    values = np.stack([quality, deferred, point_shares(pair, scores, prices).of(deferred)])
    means, replicates = values.mean(axis=1), mean_replicates(values, units=pair.units)
    estimates = [estimate(*found) for found in zip(means, replicates, strict=True)]
    return OperatingPoint(
        constraint=constraint,
        result=result,
        scores=scores,
        threshold=threshold,
        chosen_on=chosen_on,
        quality=estimates[0],
        deferral_rate=estimates[1],
        cost=estimates[2],
        cost_unit=MONEY if prices is not None else pair.small.cost_unit,
        seconds=None if seconds is None else float(seconds.of(deferred).mean()),
        against_large=mcnemar(quality, pair.large_quality, pair.units),
    )
