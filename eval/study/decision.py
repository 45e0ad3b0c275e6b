"""The decision of a report: which share to defer, or why no cascade pays.

Legend: E examples, P thresholds.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from caskd.eval.curves import Price, Shares
from caskd.eval.outcomes import MONEY
from caskd.eval.rules import Pair
from caskd.eval.stats import mean_replicates
from caskd.eval.study.measure import CascadeResult
from caskd.eval.study.operating_point import Estimate, OperatingPoint, estimate, point_shares
from caskd.store.io import strip_control
from caskd.store.spacing import thin

FloatArray = npt.NDArray[np.float64]
Prices = Mapping[str, Price] | None
Verdict = Literal["defer", "small", "large", "worse", "missed"]

NUM_THRESHOLDS, _NUM_OF_MANY, _MANY = 101, 21, 20_000


@dataclass(frozen=True, kw_only=True)
class Point:
    """One threshold of one cascade, measured."""

    threshold: float
    """Defer where score >= threshold; infinity never defers."""
    deferral_rate: float
    quality: Estimate
    lead: Estimate
    """Quality minus the large model's, on the same replicates."""
    cost: float | None
    """Mean; None if it is not known."""


@dataclass(frozen=True)
class CostLine:
    """The main rule of one small model, threshold by threshold."""

    small: str
    points: list[Point]
    """From deferral rate 0 to 1."""
    large_cost: float | None
    """Mean cost of the large model alone; None if it is not known."""


@dataclass(frozen=True, kw_only=True)
class Decision:
    """What the report recommends, and the figures that it stands on."""

    verdict: Verdict
    small: str
    large: str
    rule: str
    point: Point
    quality_large: float
    cost_change: float | None
    """Cost divided by that of the large model alone, minus 1; None if one is not known."""
    cost_unit: str
    chosen_on: str
    """Split that chose the threshold: "calibration" or "test"."""
    constraint: str | None
    """The bound of `--operating-point`; None without it."""

    def summary(self) -> dict[str, Any]:
        """As `decision` of summary.json; a threshold of infinity is null."""
        fields = asdict(self)
        if np.isinf(self.point.threshold):
            fields["point"]["threshold"] = None
        return {**fields, "sentence": sentence(self)}


def measure_points(
    score: FloatArray, pair: Pair, thresholds: FloatArray, cost: Shares | None
) -> list[Point]:
    """Measure a cascade at some thresholds.

    Args:
        score: [E] deferral score.
        pair: answers of both models.
        thresholds: [P].
        cost: of each example; None if it is not known.
    """
    deferred = score >= thresholds[:, None]
    lead = np.where(deferred, 0.0, pair.small_quality - pair.large_quality)
    values = np.concatenate([lead, pair.large_quality[None]])
    replicates = mean_replicates(values, units=pair.units)
    large = float(pair.large_quality.mean())
    return [
        Point(
            threshold=float(threshold),
            deferral_rate=float(row.mean()),
            quality=estimate(large + float(own.mean()), ours + replicates[-1]),
            lead=estimate(float(own.mean()), ours),
            cost=None if cost is None else float(cost.of(row).mean()),
        )
        for threshold, row, own, ours in zip(
            thresholds, deferred, lead, replicates[:-1], strict=True
        )
    ]


def cheapest(points: Sequence[Point]) -> int:
    """The cheapest point that is not shown to be worse than the large model alone.

    A point is shown to be worse if its whole interval of quality minus the large model's is below
    zero. Without costs the lowest deferral rate is the cheapest.

    Args:
        points: at least one of which defers everything, and is therefore as good.
    """
    known = all(point.cost is not None for point in points)
    good = [index for index, point in enumerate(points) if point.lead.high >= 0.0]
    return min(
        good,
        key=lambda i: (points[i].cost if known else points[i].deferral_rate, -points[i].lead.mean),
    )


def verdict(
    deferral_rate: float, lead_high: float, cost_change: float | None, *, met: bool = True
) -> Verdict:
    """What a measured point recommends.

    Args:
        deferral_rate: of the point.
        lead_high: upper end of the interval of its quality minus the large model's; infinity if
            the point need not be as good.
        cost_change: its cost over that of the large model alone, minus 1; None if not known.
        met: whether it meets its constraint.
    """
    if not met:
        return "missed"
    if lead_high < 0.0:
        return "worse"
    if deferral_rate >= 1.0 or (cost_change is not None and cost_change >= 0.0):
        return "large"
    return "small" if deferral_rate <= 0.0 else "defer"


def decide(
    results: Sequence[CascadeResult],
    lines: Sequence[CostLine],
    calibrations: Sequence[Pair] | None,
    prices: Prices,
    chosen: OperatingPoint | None,
) -> Decision:
    """The operating point, or else the cheapest threshold that keeps the large model's quality.

    Without an operating point the candidates are up to `NUM_THRESHOLDS` thresholds of the main rule
    for each small model. The calibration split chooses among them, if there is one; figures are
    always of the test split.

    Args:
        results: one for each small model.
        lines: points of each, from `cost_lines`.
        calibrations: answers to the calibration examples, in the same order; None without.
        prices: of tokens by model name; None without.
        chosen: the point of `--operating-point`.
    """
    if chosen is not None:
        return _of_operating_point(chosen, prices)
    found = [
        (result, point)
        for result, points in zip(
            results, _candidates(results, lines, calibrations, prices), strict=True
        )
        for point in points
    ]
    result, point = found[cheapest([one for _, one in found])]
    cost = _cost(result, result.pair, prices)
    if calibrations:
        threshold = np.array([point.threshold])
        [point] = measure_points(result.main.scores.score, result.pair, threshold, cost)
    change = cost_change(point.cost, _large_cost(cost))
    return Decision(
        verdict=verdict(point.deferral_rate, point.lead.high, change),
        rule=result.main.scores.rule,
        point=point,
        cost_change=change,
        chosen_on="calibration" if calibrations else "test",
        constraint=None,
        **_models(result, prices),
    )


def cost_lines(results: Sequence[CascadeResult], prices: Prices) -> list[CostLine]:
    """Points along the main rule's curve of each small model, on the test split."""
    found = []
    for result in results:
        thresholds = result.curve.threshold[_chosen(len(result.pair), result.curve.threshold.size)]
        cost = _cost(result, result.pair, prices)
        points = measure_points(result.main.scores.score, result.pair, thresholds, cost)
        found.append(CostLine(result.label, points, _large_cost(cost)))
    return found


def cost_change(cost: float | None, large: float | None) -> float | None:
    """Cost over that of the large model alone, minus 1; None if one is unknown or nothing."""
    return cost / large - 1.0 if cost is not None and large else None


def _candidates(
    results: Sequence[CascadeResult],
    lines: Sequence[CostLine],
    calibrations: Sequence[Pair] | None,
    prices: Prices,
) -> Iterator[Sequence[Point]]:
    if not calibrations:
        yield from (line.points for line in lines)
        return
    for result, pair in zip(results, calibrations, strict=True):
        score = result.main.scores.apply(pair)
        thresholds = np.concatenate(([np.inf], np.unique(score)[::-1]))
        chosen = thresholds[_chosen(len(pair), thresholds.size)]
        yield measure_points(score, pair, chosen, _cost(result, pair, prices))


def _chosen(num_examples: int, num_thresholds: int) -> npt.NDArray[np.int64]:
    """Indices of thresholds to measure: fewer of very many examples, for the memory."""
    return thin(num_thresholds, NUM_THRESHOLDS if num_examples <= _MANY else _NUM_OF_MANY)


def _cost(result: CascadeResult, pair: Pair, prices: Prices) -> Shares | None:
    priced = prices is not None and not pair.small.is_outcomes
    if not priced and not pair.has_cost:
        return None
    return point_shares(pair, result.main.scores, prices)


def _large_cost(cost: Shares | None) -> float | None:
    return None if cost is None else float(cost.deferred.mean())


def _models(result: CascadeResult, prices: Prices) -> dict[str, Any]:
    large = result.pair.large
    priced = prices is not None and not large.is_outcomes
    return {
        "small": result.label,
        "large": strip_control(large.model_name),
        "quality_large": result.curve.quality_large,
        "cost_unit": MONEY if priced else large.cost_unit,
    }


def _of_operating_point(chosen: OperatingPoint, prices: Prices) -> Decision:
    cost = point_shares(chosen.result.pair, chosen.scores, prices)
    threshold = np.array([chosen.threshold])
    [point] = measure_points(chosen.scores.score, chosen.result.pair, threshold, cost)
    change = cost_change(point.cost, _large_cost(cost))
    return Decision(
        verdict=verdict(point.deferral_rate, np.inf, change, met=chosen.met),
        rule=chosen.scores.rule,
        point=point,
        cost_change=change,
        chosen_on=chosen.chosen_on,
        constraint=str(chosen.constraint),
        **_models(chosen.result, prices),
    )


def number(value: float, sign: str = "") -> str:
    """A quality in three decimals, or in four digits if it is large, with a typographic minus."""
    text = format(value, f"{sign}.3f" if abs(value) < 1000 else f"{sign}.4g")
    return text.replace("-", "\u2212")


def estimate_text(found: Estimate, sign: str = "") -> str:
    """`0.860 [0.840, 0.880]`."""
    mean, low, high = (number(value, sign) for value in (found.mean, found.low, found.high))
    return f"{mean} [{low}, {high}]"


def change_text(change: float | None) -> str:
    """A relative change of cost in percent, with a typographic minus."""
    return "not known" if change is None else f"{100 * change:+.0f} %".replace("-", "\u2212")


def sentence(decision: Decision) -> str:
    """The decision in one sentence."""
    point, small, large = decision.point, decision.small, decision.large
    quality = f"quality {estimate_text(point.quality)}"
    cost = f"cost {change_text(decision.cost_change)}"
    against = f"against {large} alone"
    worse = f"is not shown to be worse than {large}"
    if decision.constraint:
        worse = f"meets {decision.constraint}"
    match decision.verdict:
        case "defer":
            return (
                f"Defer {100 * point.deferral_rate:.0f} % of the answers of {small} to {large}: "
                f"{quality}, {cost} {against}."
            )
        case "small":
            return (
                f"No cascade pays here: {small} alone {worse}: {quality}, "
                f"{large} {number(decision.quality_large)}, {cost} {against}."
            )
        case "large":
            return (
                f"No cascade pays here: the cheapest that {worse} alone defers "
                f"{100 * point.deferral_rate:.0f} %, {cost}."
            )
        case "worse":
            return (
                f"No cascade is shown to pay here: the threshold that the calibration examples "
                f"chose is worse than {large} on the test examples: {quality}, "
                f"{large} {number(decision.quality_large)}."
            )
        case "missed":
            return (
                f"No cascade is shown to pay here: the threshold chosen for {decision.constraint} "
                f"misses it on the test examples: {quality}, {cost} {against}."
            )
