"""The summary figures of one deferral curve, as the report's tables state them."""

from typing import Any

import numpy as np

from caskd.eval.curves.deferral import DeferralCurve

CPT_SHARES = (0.5, 0.8, 0.95)
RATES = (0.1, 0.2, 0.3, 0.5)
"""Deferral rates at which quality is stated and thresholds are checked."""


def curve_figures(curve: DeferralCurve) -> dict[str, Any]:
    """The figures by name; None for a figure relative to the lead if the lead is too small."""
    best = int(np.argmax(curve.quality))
    return {
        "num_examples": curve.num_examples,
        "quality_small": curve.quality_small,
        "quality_large": curve.quality_large,
        "audc": curve.audc,
        "random_audc": curve.random_audc,
        "oracle_audc": curve.oracle_audc,
        "audc_over_random": curve.audc - curve.random_audc,
        "percent_over_random": curve.percent_over_random,
        "apgr": curve.apgr,
        **{f"cpt_{100 * share:.0f}": curve.cpt(share) for share in CPT_SHARES},
        "rate_for_large": curve.rate_for(curve.quality_large),
        **{f"quality_at_{100 * rate:.0f}": curve.quality_at(rate) for rate in RATES},
        "best_quality": float(curve.quality[best]),
        "best_quality_rate": float(curve.deferral_rate[best]),
    }
