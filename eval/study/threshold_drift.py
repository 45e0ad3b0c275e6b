"""Thresholds chosen on the calibration split and applied to the test split: how far they drift."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from caskd.eval.curves import RATES, deferral_curve
from caskd.eval.rules import Pair
from caskd.eval.study.measure import CascadeResult


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
