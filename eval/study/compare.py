"""Compare every arm with every other, and every rule with the main one, on shared replicates.

Legend: S series, B bootstrap replicates, R seeds.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from caskd.eval.answers import seeds_of
from caskd.eval.stats import (
    Difference,
    McNemar,
    area_replicates,
    arm_difference,
    interval,
    mcnemar,
)
from caskd.eval.study.contrast import (
    Contrast,
    Target,
    contrasts,
    figure_replicates,
    find_target,
    seed_warnings,
)
from caskd.eval.study.measure import CascadeResult

FloatArray = npt.NDArray[np.float64]

FIXED_RATE = 0.3


@dataclass(frozen=True, kw_only=True)
class ArmArea:
    """Area under the main rule's curve of one arm, over its seeds."""

    arm: str
    num_seeds: int
    audc: float
    """Mean over the seeds."""
    seed_deviation: float | None
    """Standard deviation over the seeds."""
    low: float
    high: float
    quality_small: float
    """Mean over the seeds."""
    rate_at_quality: float
    """Mean of the deferral rates that reach the target; 1 for a seed that never does."""
    cost_at_quality: float | None
    """Mean of the FLOPs per token there; None if they are not known."""
    num_seeds_short: int
    """Seeds that never reach the target."""


@dataclass(frozen=True, kw_only=True)
class Comparisons:
    """Every difference that the report states."""

    arms: list[ArmArea]
    between_arms: list[Contrast]
    """By the area over all examples."""
    more: list[Contrast]
    """By every other figure."""
    target: Target
    between_rules: list[tuple[str, str, str, Difference]]
    """Small model, a rule, the main rule, and the first rule's area minus the main rule's."""
    at_one_rate: list[tuple[str, str, McNemar]]
    """Cascades of two arms of one seed each, at thresholds that defer at most `FIXED_RATE`."""
    warnings: list[str]


def compare(results: Sequence[CascadeResult], target_quality: float | None = None) -> Comparisons:
    """Compare all arms by their main rule, and in each small model all rules with the main one.

    The intervals of single areas are stored in each `CascadeResult.intervals`.

    Args:
        results: one for each small model.
        target_quality: at which costs are compared; None for the default of `find_target`.
    """
    keys = [(index, rule) for index, result in enumerate(results) for rule in result.rules]
    replicates = area_replicates(
        [(results[i].rules[rule].scores.score, results[i].pair.small_quality) for i, rule in keys],
        results[0].pair.large_quality,
        units=results[0].pair.units,
    )
    areas = {
        (index, rule): (
            np.array([results[index].rules[rule].curve.audc]),
            replicates[row : row + 1],
        )
        for row, (index, rule) in enumerate(keys)
    }
    for (index, rule), (_, rule_replicates) in areas.items():
        results[index].intervals[rule] = interval(rule_replicates[0])
    mains = [next(iter(result.rules)) for result in results]
    target = find_target(results, target_quality)
    main_replicates = np.concatenate([areas[key][1] for key in enumerate(mains)])
    arms = [result.arm for result in results]
    several = len(set(arms)) > 1
    figures = figure_replicates(results, main_replicates, target) if several else []
    by_area = contrasts(arms, figures[:1])
    return Comparisons(
        arms=[
            _arm_area(arm, indices, results, main_replicates, target)
            for arm, indices in seeds_of(arms).items()
        ],
        between_arms=by_area,
        more=contrasts(arms, figures[1:]),
        target=target,
        between_rules=[
            (
                results[index].label,
                rule,
                mains[index],
                arm_difference(areas[index, rule], areas[index, mains[index]]),
            )
            for index, rule in keys
            if rule != mains[index]
        ],
        at_one_rate=[
            (a.label, b.label, mcnemar(_quality_at(a), _quality_at(b), a.pair.units))
            for a, b in combinations(results, 2)
            if arms.count(a.arm) == arms.count(b.arm) == 1
        ],
        # The models of a table are what they are: nobody trains them again.
        warnings=[] if results[0].pair.large.is_outcomes else list(seed_warnings(arms)),
    )


def _quality_at(result: CascadeResult) -> FloatArray:
    """Quality [E] of a cascade at the threshold that defers the most within `FIXED_RATE`."""
    score = result.main.scores.score
    point = int(np.flatnonzero(result.curve.deferral_rate <= FIXED_RATE)[-1])
    deferred = score >= result.curve.threshold[point]
    return np.where(deferred, result.pair.large_quality, result.pair.small_quality)


def _arm_area(
    arm: str,
    indices: list[int],
    results: Sequence[CascadeResult],
    replicates: FloatArray,
    target: Target,
) -> ArmArea:
    areas = np.array([results[index].curve.audc for index in indices])
    # The arm minus zero: its own interval, with its seeds resampled as in a difference.
    costs = [cost for index in indices if (cost := target.cost[index]) is not None]
    zero = (np.zeros(areas.size), np.zeros((areas.size, replicates.shape[1])))
    own = arm_difference((areas, replicates[indices]), zero)
    return ArmArea(
        arm=arm,
        num_seeds=areas.size,
        audc=own.value,
        seed_deviation=statistics.stdev(areas.tolist()) if areas.size > 1 else None,
        low=own.low,
        high=own.high,
        quality_small=statistics.fmean(results[index].curve.quality_small for index in indices),
        rate_at_quality=statistics.fmean(target.rate[index] for index in indices),
        cost_at_quality=statistics.fmean(costs) if len(costs) == len(indices) else None,
        num_seeds_short=sum(not target.reached[index] for index in indices),
    )
