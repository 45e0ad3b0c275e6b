"""Is one arm better than another, and one rule than another? All on the same redrawn examples.

Legend: S series, B draws, R seeds.
"""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from caskd.eval.answers import seeds_of
from caskd.eval.stats import Difference, McNemar, area_draws, arm_difference, interval, mcnemar
from caskd.eval.study.contrast import Contrast, Target, contrasts, drawn_measures, find_target
from caskd.eval.study.measure import Measured

FloatArray = npt.NDArray[np.float64]

ENOUGH_SEEDS = 5
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
    cost_at_quality: float
    """Mean of the FLOPs per token there."""
    num_seeds_short: int
    """Seeds that never reach the target."""


@dataclass(frozen=True, kw_only=True)
class Comparisons:
    """Every difference that the report states."""

    arms: list[ArmArea]
    between_arms: list[Contrast]
    """By the area over all examples."""
    more: list[Contrast]
    """By every other measure."""
    target: Target
    between_rules: list[tuple[str, str, str, Difference]]
    """Small model, a rule, the main rule, and the first rule's area minus the main rule's."""
    at_one_rate: list[tuple[str, str, McNemar]]
    """Cascades of two arms of one seed each, at thresholds that defer at most `FIXED_RATE`."""
    warnings: list[str]


def compare(measured: Sequence[Measured], target_quality: float | None = None) -> Comparisons:
    """Compare all arms by their main rule, and in each small model all rules with the main one.

    The intervals of single areas are noted in each `Measured.intervals`.

    Args:
        measured: the small models.
        target_quality: at which costs are compared; None as `find_target` has it.
    """
    keys = [(place, name) for place, one in enumerate(measured) for name in one.rules]
    draws = area_draws(
        [(measured[p].rules[name].scored.score, measured[p].pair.small_quality)
         for p, name in keys],
        measured[0].pair.large_quality,
    )  # fmt: skip
    found = {
        key: (np.array([measured[key[0]].rules[key[1]].curve.audc]), draws[row : row + 1])
        for row, key in enumerate(keys)
    }
    for (place, name), (_, rule_draws) in found.items():
        measured[place].intervals[name] = interval(rule_draws[0])
    mains = [next(iter(one.rules)) for one in measured]
    target = find_target(measured, target_quality)
    areas = np.concatenate([found[key][1] for key in enumerate(mains)])
    arms = [one.arm for one in measured]
    several = len(set(arms)) > 1
    drawn = drawn_measures(measured, areas, target) if several else []
    by_area = contrasts(arms, drawn[:1])
    return Comparisons(
        arms=[_arm_area(arm, places, measured, areas, target)
              for arm, places in seeds_of(arms).items()],
        between_arms=by_area,
        more=contrasts(arms, drawn[1:]),
        target=target,
        between_rules=[
            (measured[place].label, name, mains[place],
             arm_difference(found[place, name], found[place, mains[place]]))
            for place, name in keys
            if name != mains[place]
        ],
        at_one_rate=[
            (a.label, b.label, mcnemar(_quality_at(a), _quality_at(b)))
            for a, b in combinations(measured, 2)
            if arms.count(a.arm) == arms.count(b.arm) == 1
        ],
        warnings=list(_warnings(by_area)),
    )  # fmt: skip


def _warnings(by_area: Sequence[Contrast]) -> Iterator[str]:
    for one in by_area:
        if 1 < one.difference.num_seeds < ENOUGH_SEEDS:
            yield (
                f"{one.first} and {one.second}: an interval over {one.difference.num_seeds} seeds "
                f"is too narrow; train at least {ENOUGH_SEEDS}."
            )


def _quality_at(one: Measured) -> FloatArray:
    """Quality [E] of a cascade at the threshold that defers the most within `FIXED_RATE`."""
    score = one.main.scored.score
    place = int(np.flatnonzero(one.curve.deferral_rate <= FIXED_RATE)[-1])
    deferred = score >= one.curve.threshold[place]
    return np.where(deferred, one.pair.large_quality, one.pair.small_quality)


def _arm_area(
    arm: str, places: list[int], measured: Sequence[Measured], draws: FloatArray, target: Target
) -> ArmArea:
    areas = np.array([measured[place].curve.audc for place in places])
    # An arm against nothing: its own interval, with its seeds redrawn as in a difference.
    nothing = (np.zeros(areas.size), np.zeros((areas.size, draws.shape[1])))
    own = arm_difference((areas, draws[places]), nothing)
    return ArmArea(
        arm=arm,
        num_seeds=areas.size,
        audc=own.value,
        seed_deviation=statistics.stdev(areas.tolist()) if areas.size > 1 else None,
        low=own.low,
        high=own.high,
        quality_small=statistics.fmean(measured[place].curve.quality_small for place in places),
        rate_at_quality=statistics.fmean(target.rate[place] for place in places),
        cost_at_quality=statistics.fmean(target.cost[place] for place in places),
        num_seeds_short=sum(not target.reached[place] for place in places),
    )
