"""Thresholds chosen on the calibration split, applied to the test split: what drifts."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from caskd.eval.curves import deferral_curve
from caskd.eval.rules import Pair
from caskd.eval.study.measure import RATES, Measured


def transfer_rows(
    measured: Sequence[Measured], calibrations: Sequence[Pair]
) -> Iterator[dict[str, Any]]:
    """For every small model, rule and wanted deferral rate: the threshold, and what it does here.

    The threshold is the one that defers most on the calibration split without exceeding the rate.
    """
    for one, calibration in zip(measured, calibrations, strict=True):
        for name, rule in one.rules.items():
            score = rule.scored.apply(calibration)
            chosen = deferral_curve(score, calibration.small_quality, calibration.large_quality)
            for rate in RATES:
                place = int(np.flatnonzero(chosen.deferral_rate <= rate + 1e-12)[-1])
                threshold = float(chosen.threshold[place])
                deferred = rule.scored.score >= threshold
                quality = np.where(deferred, one.pair.large_quality, one.pair.small_quality)
                yield {
                    "small": one.label,
                    "rule": name,
                    "wanted_rate": rate,
                    "threshold": threshold if np.isfinite(threshold) else None,
                    "rate_calibration": float(chosen.deferral_rate[place]),
                    "rate_test": float(deferred.mean()),
                    "drift": float(deferred.mean() - chosen.deferral_rate[place]),
                    "quality_calibration": float(chosen.quality[place]),
                    "quality_test": float(quality.mean()),
                }
