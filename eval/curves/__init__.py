"""Deferral curves, costs, confidence and chains of models, in numpy alone."""

from caskd.eval.curves.cascade_routing import (
    MAX_ROUTED,
    Beliefs,
    CascadeRouter,
    expected_best,
)
from caskd.eval.curves.chains import (
    Frontier,
    Link,
    apply_thresholds,
    chain_frontier,
    unbeaten,
)
from caskd.eval.curves.confidence import aurc, auroc, calibration_error, isotonic_confidence
from caskd.eval.curves.corpus_bleu import bleu_curve, ngram_counts
from caskd.eval.curves.cost import (
    Price,
    Shares,
    answer_cost,
    flops,
    flops_per_token,
    money,
    price_of,
    read_prices,
    shares,
    tail_seconds,
    token_cost,
)
from caskd.eval.curves.deferral import (
    MIN_GAP,
    DeferralCurve,
    defer_order,
    deferral_curve,
    finite_scores,
)
from caskd.eval.curves.figures import RATES, curve_figures
from caskd.eval.curves.risk_control import quantile_bound, safe_threshold
from caskd.eval.curves.router_figures import aiq, arena_score, dominates

__all__ = [
    "MAX_ROUTED",
    "MIN_GAP",
    "RATES",
    "Beliefs",
    "CascadeRouter",
    "DeferralCurve",
    "Frontier",
    "Link",
    "Price",
    "Shares",
    "aiq",
    "answer_cost",
    "apply_thresholds",
    "arena_score",
    "aurc",
    "auroc",
    "bleu_curve",
    "calibration_error",
    "chain_frontier",
    "curve_figures",
    "defer_order",
    "deferral_curve",
    "dominates",
    "expected_best",
    "finite_scores",
    "flops",
    "flops_per_token",
    "isotonic_confidence",
    "money",
    "ngram_counts",
    "price_of",
    "quantile_bound",
    "read_prices",
    "safe_threshold",
    "shares",
    "tail_seconds",
    "token_cost",
    "unbeaten",
]
