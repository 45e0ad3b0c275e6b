"""The numbers of a report, from joined predictions: one `Measured` for each small model."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from caskd.eval.curves import (
    MIN_GAP,
    DeferralCurve,
    Price,
    Shares,
    aurc,
    auroc,
    bleu_curve,
    calibration_error,
    deferral_curve,
    flops,
    money,
    ngram_counts,
    price_of,
    shares,
    tail_seconds,
    thin,
    token_cost,
)
from caskd.eval.rules import Pair, Scored

FloatArray = npt.NDArray[np.float64]

ALL_TASKS = "all"
NO_TASK = "(no task)"
MAX_POINTS = 10_001
CPT_SHARES = (0.5, 0.8, 0.95)
RATES = (0.1, 0.2, 0.3, 0.5)


@dataclass(frozen=True, eq=False)
class RuleMeasured:
    """One rule on one small model."""

    scored: Scored
    curve: DeferralCurve
    """Thinned to `MAX_POINTS` points; its figures are those of all points."""
    figures: Mapping[str, Any]
    token_flops: FloatArray
    """[P] FLOPs per token on the paper's axis."""


@dataclass(frozen=True, eq=False)
class Measured:
    """One small model against the large one."""

    label: str
    arm: str
    pair: Pair
    rules: Mapping[str, RuleMeasured]
    """The first rule is that of every other field."""
    tasks: Mapping[str, DeferralCurve]
    """A curve per task, each with thresholds of its own; empty where there is a single task."""
    costs: Mapping[str, FloatArray]
    """[P] mean cost per example at each point of the curve: flops, seconds, and money if priced."""
    tail: tuple[FloatArray, FloatArray]
    """Deferral rates, and the 95th percentile of the seconds per example there."""
    bleu: tuple[FloatArray, FloatArray] | None
    """Deferral rates, and corpus BLEU there."""
    intervals: dict[str, tuple[float, float]] = field(default_factory=dict)
    """Of the area, by rule."""

    @property
    def main(self) -> RuleMeasured:
        """The first rule."""
        return next(iter(self.rules.values()))

    @property
    def curve(self) -> DeferralCurve:
        """Of the first rule."""
        return self.main.curve

    @property
    def token_flops(self) -> FloatArray:
        """[P] of the first rule."""
        return self.main.token_flops


def measure(
    label: str,
    arm: str,
    pair: Pair,
    scored: Mapping[str, Scored],
    *,
    prices: Mapping[str, Price] | None = None,
    bleu: str | None = None,
) -> Measured:
    """Curves and costs of one cascade.

    Args:
        label: of this small model.
        arm: that it is a seed of.
        pair: the examples.
        scored: every rule's score of them, the main rule's first.
        prices: of tokens, by the model's name.
        bleu: tokenizer of corpus BLEU, where it is wanted.

    Raises:
        UsageError: a model has no price, or sacrebleu has no such tokenizer.
    """
    first = next(iter(scored.values()))
    names = sorted(set(pair.tasks))
    tasks = np.array(pair.tasks, dtype=object)
    parts = {name: np.flatnonzero(tasks == name) for name in names} if len(names) > 1 else {}
    curve = deferral_curve(first.score, pair.small_quality, pair.large_quality)
    places = thin(curve.deferral_rate.size, MAX_POINTS)
    costs = cost_shares(pair, first, prices)
    return Measured(
        label=label,
        arm=arm,
        pair=pair,
        rules={name: _measure_rule(pair, one) for name, one in scored.items()},
        tasks={
            name: deferral_curve(
                first.score[part], pair.small_quality[part], pair.large_quality[part]
            )
            for name, part in parts.items()
        },
        costs={unit: one.mean(first.score)[places] for unit, one in costs.items()},
        tail=tail_seconds(first.score, costs["seconds"]),
        bleu=_bleu(pair, first.score, bleu) if bleu else None,
    )


def _measure_rule(pair: Pair, scored: Scored) -> RuleMeasured:
    curve = deferral_curve(scored.score, pair.small_quality, pair.large_quality)
    places = thin(curve.deferral_rate.size, MAX_POINTS)
    thinned = replace(
        curve,
        **{
            name: getattr(curve, name)[places]
            for name in ("deferral_rate", "quality", "threshold", "a1", "a2", "random")
        },
    )
    oracle = thin(curve.oracle_rate.size, MAX_POINTS)
    thinned = replace(
        thinned,
        oracle_rate=curve.oracle_rate[oracle],
        oracle_quality=curve.oracle_quality[oracle],
    )
    rest = {
        "auroc": auroc(scored.score, pair.small_quality),
        "aurc": aurc(scored.score, pair.small_quality),
        "ece": None
        if scored.confidence is None
        else calibration_error(scored.confidence, pair.small_quality),
    }
    return RuleMeasured(
        scored=scored,
        curve=thinned,
        figures={**figures(curve), **rest},
        token_flops=token_cost(
            thinned.deferral_rate,
            pair.small.num_parameters,
            pair.large.num_parameters,
            before_generation=scored.before_generation,
        ),
    )


def cost_shares(
    pair: Pair, scored: Scored, prices: Mapping[str, Price] | None
) -> dict[str, Shares]:
    """What each example costs in flops, seconds and, with a price list, money.

    A rule on the small model's hidden state pays for reading the prompt; its seconds count in full,
    since files do not tell reading from writing.

    Raises:
        UsageError: a model has no price.
    """
    units = {"flops": (flops(pair.small), flops(pair.large))}
    if prices is not None:
        models = (pair.small, pair.large)
        ours, theirs = (money(one, price_of(prices, one.model_name)) for one in models)
        units["money"] = (ours, theirs)
    found = {}
    for unit, ((read, written), (large_read, large_written)) in units.items():
        saved = written if scored.before_generation else None
        saved = read + written if scored.reads_prompt_alone else saved
        found[unit] = shares(read + written, large_read + large_written, saved=saved)
    seconds = pair.small.numbers("seconds")
    found["seconds"] = shares(
        seconds,
        pair.large.numbers("seconds"),
        saved=seconds if scored.reads_prompt_alone else None,
    )
    return found


def _bleu(pair: Pair, score: FloatArray, tokenizer: str) -> tuple[FloatArray, FloatArray]:
    references = pair.large.references()
    small, large = (
        ngram_counts(one.strings("text"), references, tokenizer) for one in (pair.small, pair.large)
    )
    return bleu_curve(score, small, large, tokenizer)


def warnings(measured: Sequence[Measured]) -> list[str]:
    """What a reader must know before trusting the numbers, in words."""
    return [
        f"The large model's lead over {m.label} is {100 * m.curve.gap:.1f} points, less than "
        f"{100 * MIN_GAP:.0f}: there is little for a cascade to win, and figures relative to the "
        "lead are left out."
        for m in measured
        if m.curve.gap < MIN_GAP
    ]


def figures(curve: DeferralCurve) -> dict[str, Any]:
    """The summary numbers of one curve."""
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
