"""The numbers of a report, from joined predictions: one `Measured` for each small model."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

from caskd.eval.bootstrap import Difference, paired_difference
from caskd.eval.cascade import Cascade
from caskd.eval.cost import example_cost, token_cost
from caskd.eval.curves import MIN_GAP, DeferralCurve
from caskd.eval.predictions import Predictions
from caskd.eval.text import plain

FloatArray = npt.NDArray[np.float64]

ALL_TASKS = "all"
NO_TASK = "(no task)"


@dataclass(frozen=True)
class Measured:
    """One small model against the large one."""

    label: str
    cascade: Cascade
    curve: DeferralCurve
    tasks: Mapping[str, DeferralCurve]
    """A curve per task, each with thresholds of its own; empty where there is a single task."""
    token_flops: FloatArray
    """[P] FLOPs per token on the paper's axis."""
    example_flops: FloatArray
    """[P] mean FLOPs per example, prompts and lengths counted."""


def measure(label: str, cascade: Cascade, rule: str) -> Measured:
    """Curves and costs of one cascade.

    Raises:
        UsageError: the rule is unknown or a score is not finite.
    """
    curve = cascade.curve(rule)
    names = sorted(set(cascade.tasks))
    small, large = cascade.small, cascade.large
    return Measured(
        label=label,
        cascade=cascade,
        curve=curve,
        tasks={name: cascade.curve(rule, name) for name in names} if len(names) > 1 else {},
        token_flops=token_cost(curve.deferral_rate, small.num_parameters, large.num_parameters),
        example_flops=example_cost(
            cascade.score(rule),
            small.num_parameters,
            num_tokens(small),
            large.num_parameters,
            num_tokens(large),
        ),
    )


def num_tokens(predictions: Predictions) -> FloatArray:
    """[E] tokens that a model processed for each example, prompt and answer."""
    return predictions.numbers("prompt_tokens") + predictions.numbers("output_tokens")


def labels(smalls: Sequence[Predictions]) -> list[str]:
    """A name for each small model: the model's, with the file's where models share a name."""
    names = [plain(small.model_name) for small in smalls]
    shared = Counter(names)
    found = [
        name if shared[name] == 1 else f"{name} ({plain(small.source).removesuffix('.parquet')})"
        for name, small in zip(names, smalls, strict=True)
    ]
    twice = Counter(found)
    return [
        name if twice[name] == 1 else f"{name} #{number}" for number, name in enumerate(found, 1)
    ]


def differences(
    measured: Sequence[Measured], rule: str
) -> list[tuple[Measured, Measured, Difference]]:
    """Every pair of small models, with a paired interval over examples."""
    return [
        (
            first,
            second,
            paired_difference(
                (first.cascade.score(rule), first.cascade.small_quality),
                (second.cascade.score(rule), second.cascade.small_quality),
                first.cascade.large_quality,
            ),
        )
        for first, second in combinations(measured, 2)
    ]


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
        "best_quality": float(curve.quality[best]),
        "best_quality_rate": float(curve.deferral_rate[best]),
    }
