"""Thresholds of the calibration split on other examples: their drift, and those of `--guarantee`.

Legend: E examples.
"""

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from caskd.eval.curves import RATES, Price, deferral_curve, quantile_bound, safe_threshold
from caskd.eval.rules import Pair
from caskd.eval.study.measure import CascadeResult
from caskd.eval.study.operating_point import point_shares
from caskd.store.errors import UsageError

FloatArray = npt.NDArray[np.float64]

DELTA = 0.05
"""Chance that the cost of an example exceeds the bound that the report states."""
_FORM = re.compile(r"\s*(risk|regret)\s*<=\s*([-+.\deE]+)\s*")


@dataclass(frozen=True)
class Promise:
    """A bound on the mean loss of the answers that the small model keeps."""

    quantity: str
    """risk, 1 - quality of a kept answer; or regret, by how much the large one is better."""
    limit: float

    def __str__(self) -> str:
        return f"{self.quantity}<={self.limit:g}"

    def loss(self, pair: Pair) -> FloatArray:
        """[E] loss of keeping each answer, from 0 to 1."""
        if self.quantity == "risk":
            return 1.0 - pair.small_quality
        return np.maximum(pair.large_quality - pair.small_quality, 0.0)


@dataclass(frozen=True)
class Guarantee:
    """The thresholds of one promise."""

    promise: Promise
    num_questions: int
    """Calibration questions that chose each threshold."""
    rows: Sequence[Mapping[str, Any]]
    """One for each small model and rule: threshold, and what the test split measures."""

    def summary(self) -> dict[str, Any]:
        """The guarantee in summary.json."""
        return {
            "promise": str(self.promise),
            "num_questions": self.num_questions,
            "cost_exceeded_with_probability": DELTA,
            "thresholds": [dict(row) for row in self.rows],
        }


def parse_promise(text: str) -> Promise:
    """Read `risk<=.05` or `regret<=.02`.

    Raises:
        UsageError: the text is neither, or its number is not between 0 and 1.
    """
    match = _FORM.fullmatch(text)
    try:
        promise = Promise(match[1], float(match[2])) if match else None
    except ValueError:
        promise = None
    if promise is None or not 0.0 < promise.limit < 1.0:
        raise UsageError(
            f"--guarantee {text!r}: expected 'risk<=.05' or 'regret<=.05', in quotes, with a "
            "number between 0 and 1; pass one of these forms"
        )
    return promise


def guarantee(
    promise: Promise,
    results: Sequence[CascadeResult],
    calibrations: Sequence[Pair] | None,
    prices: Mapping[str, Price] | None,
    *,
    bounded: bool,
) -> Guarantee:
    """The threshold of each small model and rule on the calibration split.

    Each threshold keeps the promise alone; the best of several, chosen by these figures, need not.

    Raises:
        UsageError: there is no calibration split, or quality is not from 0 to 1.
    """
    if calibrations is None:
        raise UsageError(
            f"--guarantee '{promise}': has no examples to choose thresholds on; expected others "
            "than those that measure them; pass --calibration 0.5"
        )
    if not bounded:
        raise UsageError(
            f"--guarantee '{promise}': quality is not from 0 to 1 in all examples, so that a loss "
            "has no bound; expected such a metric; scale it, or omit --guarantee"
        )
    rows = [
        _row(promise, result, name, calibration, prices)
        for result, calibration in zip(results, calibrations, strict=True)
        for name in result.rules
    ]
    return Guarantee(promise, calibrations[0].num_questions, rows)


def _row(
    promise: Promise,
    result: CascadeResult,
    name: str,
    calibration: Pair,
    prices: Mapping[str, Price] | None,
) -> dict[str, Any]:
    pair, scores = result.pair, result.rules[name].scores
    threshold = safe_threshold(
        scores.apply(calibration), promise.loss(calibration), promise.limit, calibration.units
    )
    kept = scores.score < threshold
    lost = np.where(kept, promise.loss(pair), 0.0)
    quality = np.where(kept, pair.small_quality, pair.large_quality)
    cost = point_shares(pair, scores, prices).of(~kept)
    return {
        "small": result.label,
        "rule": name,
        "threshold": threshold if math.isfinite(threshold) else None,
        "answer": _ANSWERS.get(threshold),
        "deferral_rate": float(1.0 - kept.mean()),
        promise.quantity: float(lost.mean()),
        "wrong_if_kept": float((1.0 - pair.small_quality[kept]).mean()) if kept.any() else None,
        "quality": float(quality.mean()),
        "cost": float(cost.mean()),
        "cost_bound": quantile_bound(cost, DELTA, pair.units),
    }


_ANSWERS = {-math.inf: "defer everything", math.inf: "keep everything"}
"""What a threshold without a number means."""


def drift_rows(
    results: Sequence[CascadeResult], calibrations: Sequence[Pair]
) -> Iterator[dict[str, Any]]:
    """One row per small model, rule and wanted deferral rate: the threshold, and both splits.

    The threshold is the one that defers most on the calibration split without exceeding the rate.
    """
    for result, calibration in zip(results, calibrations, strict=True):
        for name, rule in result.rules.items():
            score = rule.scores.apply(calibration)
            chosen = deferral_curve(score, calibration.small_quality, calibration.large_quality)
            for rate in RATES:
                point = int(np.flatnonzero(chosen.deferral_rate <= rate + 1e-12)[-1])
                threshold = float(chosen.threshold[point])
                deferred = rule.scores.score >= threshold
                quality = np.where(deferred, result.pair.large_quality, result.pair.small_quality)
                yield {
                    "small": result.label,
                    "rule": name,
                    "wanted_rate": rate,
                    "threshold": threshold if np.isfinite(threshold) else None,
                    "rate_calibration": float(chosen.deferral_rate[point]),
                    "rate_test": float(deferred.mean()),
                    "drift": float(deferred.mean() - chosen.deferral_rate[point]),
                    "quality_calibration": float(chosen.quality[point]),
                    "quality_test": float(quality.mean()),
                }
