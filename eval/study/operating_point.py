"""One cascade to ship: the small model, the rule and the threshold that meet a wish best.

Legend: E examples, P points of a curve.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from caskd.eval.curves import DeferralCurve, Price, Shares, deferral_curve, flops_per_token, shares
from caskd.eval.rules import Pair, Scored
from caskd.eval.stats import McNemar, interval, mcnemar, mean_draws
from caskd.eval.study.measure import Measured, cost_shares
from caskd.store.errors import UsageError

FloatArray = npt.NDArray[np.float64]

TOKEN_FLOPS, MONEY = "FLOPs per token", "money per example"
_WISH = re.compile(r"\s*(quality|cost|deferral_rate)\s*(>=|<=)\s*([-+.\deE]+)\s*")


@dataclass(frozen=True)
class Wish:
    """What the cascade must keep to; what it leaves open is made as good as it can be."""

    quantity: str
    """quality (at least), cost or deferral_rate (at most)."""
    bound: float

    def __str__(self) -> str:
        return f"{self.quantity}{'>=' if self.quantity == 'quality' else '<='}{self.bound:g}"


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A mean over the test examples with its 95 % interval."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True, eq=False, kw_only=True)
class OperatingPoint:
    """A small model, a rule, a threshold, and what to expect of them."""

    wish: Wish
    measured: Measured
    scored: Scored
    threshold: float
    """Defer where score >= threshold; infinity never defers."""
    chosen_on: str
    """"calibration", or "test": then the expectations are too good, as the best of many."""
    quality: Estimate
    deferral_rate: Estimate
    cost: Estimate
    cost_unit: str
    seconds: float
    """Mean per example."""
    against_large: McNemar
    """The cascade against the large model alone."""

    @property
    def met(self) -> bool:
        """Whether the test examples bear the wish out."""
        mean = getattr(self, self.wish.quantity).mean
        bound = self.wish.bound
        return bool(mean >= bound if self.wish.quantity == "quality" else mean <= bound)


def parse_wish(text: str) -> Wish:
    """Read `quality>=0.86`, `cost<=5e8` or `deferral_rate<=0.3`.

    Raises:
        UsageError: it is none of these.
    """
    match = _WISH.fullmatch(text)
    try:
        quantity, sign, bound = match.groups() if match else ("", "", "")
        wish = Wish(quantity, float(bound))
    except ValueError:
        match = None
    if match is None or (sign == ">=") != (quantity == "quality") or not np.isfinite(wish.bound):
        raise UsageError(
            f"got --operating-point {text!r}, expected quality>=0.86, cost<=5e8 "
            "or deferral_rate<=0.3, in quotes"
        )
    return wish


def choose(
    wish: Wish,
    measured: Sequence[Measured],
    calibrations: Sequence[Pair] | None,
    prices: Mapping[str, Price] | None,
) -> OperatingPoint:
    """The best of all small models, rules and thresholds.

    A wish for quality is met at the lowest cost, one for cost or deferral rate at the highest
    quality. Thresholds are chosen on the calibration split where there is one; what to expect is
    always measured on the test split.

    Raises:
        UsageError: nothing meets the wish; says what comes nearest.
    """
    best: tuple[tuple[float, float], Measured, Scored, float] | None = None
    nearest: list[float] = []
    for one, pair, scored in _candidates(measured, calibrations):
        score = scored.apply(pair) if calibrations else scored.score
        curve = deferral_curve(score, pair.small_quality, pair.large_quality)
        cost = _cost(pair, scored, prices).mean(score)
        place = _best_point(wish, curve, cost)
        values = {"quality": curve.quality, "deferral_rate": curve.deferral_rate, "cost": cost}
        nearest.append(float(_extreme(wish, values[wish.quantity])))
        if place is None:
            continue
        quality, spent = float(curve.quality[place]), float(cost[place])
        rank = (-spent, quality) if wish.quantity == "quality" else (quality, -spent)
        if best is None or rank > best[0]:
            best = rank, one, scored, float(curve.threshold[place])
    if best is None:
        raise UsageError(
            f"no cascade meets --operating-point '{wish}': the nearest {wish.quantity} is "
            f"{_extreme(wish, np.array(nearest)):.6g}; ask for less"
        )
    _, one, scored, threshold = best
    return _expect(wish, one, scored, threshold, prices, "calibration" if calibrations else "test")


def _candidates(
    measured: Sequence[Measured], calibrations: Sequence[Pair] | None
) -> Iterator[tuple[Measured, Pair, Scored]]:
    for place, one in enumerate(measured):
        pair = calibrations[place] if calibrations else one.pair
        for rule in one.rules.values():
            yield one, pair, rule.scored


def _best_point(wish: Wish, curve: DeferralCurve, cost: FloatArray) -> int | None:
    if wish.quantity == "quality":
        fits = np.flatnonzero(curve.quality >= wish.bound)
        order = np.lexsort((-curve.quality[fits], cost[fits]))
    else:
        limited = cost if wish.quantity == "cost" else curve.deferral_rate
        fits = np.flatnonzero(limited <= wish.bound)
        order = np.lexsort((cost[fits], -curve.quality[fits]))
    return int(fits[order[0]]) if fits.size else None


def _extreme(wish: Wish, values: FloatArray) -> float:
    return float(values.max() if wish.quantity == "quality" else values.min())


def _cost(pair: Pair, scored: Scored, prices: Mapping[str, Price] | None) -> Shares:
    if prices is not None:
        return cost_shares(pair, scored, prices)["money"]
    small, large = (
        np.full(len(pair), flops_per_token(model.num_parameters))
        for model in (pair.small, pair.large)
    )
    return shares(small, large, saved=small if scored.before_generation else None)


def _expect(
    wish: Wish,
    one: Measured,
    scored: Scored,
    threshold: float,
    prices: Mapping[str, Price] | None,
    chosen_on: str,
) -> OperatingPoint:
    pair = one.pair
    deferred = scored.score >= threshold
    quality = np.where(deferred, pair.large_quality, pair.small_quality)
    values = np.stack([quality, deferred, _cost(pair, scored, prices).of(deferred)])
    means, draws = values.mean(axis=1), mean_draws(values)
    estimates = [
        Estimate(mean=float(mean), low=low, high=high)
        for mean, (low, high) in zip(means, map(interval, draws), strict=True)
    ]
    return OperatingPoint(
        wish=wish,
        measured=one,
        scored=scored,
        threshold=threshold,
        chosen_on=chosen_on,
        quality=estimates[0],
        deferral_rate=estimates[1],
        cost=estimates[2],
        cost_unit=MONEY if prices is not None else TOKEN_FLOPS,
        seconds=float(cost_shares(pair, scored, None)["seconds"].of(deferred).mean()),
        against_large=mcnemar(quality, pair.large_quality),
    )
