"""Is one arm better than another, and one rule than another? All on the same redrawn examples.

Legend: S series, B draws, R seeds.
"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import numpy.typing as npt

from caskd.eval.arms import seeds_of
from caskd.eval.bootstrap import Difference, area_draws, arm_difference, interval
from caskd.eval.measure import Measured
from caskd.eval.significance import McNemar, mcnemar

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


@dataclass(frozen=True, kw_only=True)
class Comparisons:
    """Every difference that the report states."""

    arms: list[ArmArea]
    between_arms: list[tuple[str, str, Difference]]
    between_rules: list[tuple[str, str, str, Difference]]
    """Small model, a rule, the main rule, and the first rule's area minus the main rule's."""
    at_one_rate: list[tuple[str, str, McNemar]]
    """Cascades of two arms of one seed each, at thresholds that defer at most `FIXED_RATE`."""
    warnings: list[str]


def compare(measured: Sequence[Measured]) -> Comparisons:
    """Compare all arms by their main rule, and in each small model all rules with the main one.

    The intervals of single areas are noted in each `Measured.intervals`.
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
    arms = {}
    for arm, places in seeds_of([one.arm for one in measured]).items():
        seeds = [found[place, mains[place]] for place in places]
        areas, own = (np.concatenate(parts) for parts in zip(*seeds, strict=True))
        arms[arm] = areas, own
    differences = [
        (first, second, arm_difference(arms[first], arms[second]))
        for first, second in combinations(arms, 2)
    ]
    return Comparisons(
        arms=[_arm_area(arm, *values) for arm, values in arms.items()],
        between_arms=differences,
        between_rules=[
            (measured[place].label, name, mains[place],
             arm_difference(found[place, name], found[place, mains[place]]))
            for place, name in keys
            if name != mains[place]
        ],
        at_one_rate=[
            (a.label, b.label, mcnemar(_quality_at(a), _quality_at(b)))
            for a, b in combinations(measured, 2)
            if len(arms[a.arm][0]) == len(arms[b.arm][0]) == 1
        ],
        warnings=[
            f"{first} and {second}: an interval over {difference.num_seeds} seeds is too narrow; "
            f"train at least {ENOUGH_SEEDS}."
            for first, second, difference in differences
            if 1 < difference.num_seeds < ENOUGH_SEEDS
        ],
    )  # fmt: skip


def _quality_at(one: Measured) -> FloatArray:
    """Quality [E] of a cascade at the threshold that defers the most within `FIXED_RATE`."""
    score = one.main.scored.score
    place = int(np.flatnonzero(one.curve.deferral_rate <= FIXED_RATE)[-1])
    deferred = score >= one.curve.threshold[place]
    return np.where(deferred, one.pair.large_quality, one.pair.small_quality)


def _arm_area(arm: str, areas: FloatArray, draws: FloatArray) -> ArmArea:
    # An arm against nothing: its own interval, with its seeds redrawn as in a difference.
    nothing = (np.zeros(areas.size), np.zeros_like(draws))
    own = arm_difference((areas, draws), nothing)
    return ArmArea(
        arm=arm,
        num_seeds=areas.size,
        audc=own.audc_difference,
        seed_deviation=statistics.stdev(areas.tolist()) if areas.size > 1 else None,
        low=own.low,
        high=own.high,
    )
