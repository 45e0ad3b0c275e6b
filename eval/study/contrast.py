"""Every arm against every other: by area, by small model, by gain over random, by cost; by task.

Legend: E examples, S small models, T tasks, B draws.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations, compress

import numpy as np
import numpy.typing as npt

from caskd.eval.answers import seeds_of
from caskd.eval.curves import deferral_curve, token_cost
from caskd.eval.stats import Difference, Series, arm_difference, pooled_draws, task_draws
from caskd.eval.study.measure import ALL_TASKS, NO_TASK, Measured, figures
from caskd.store.io import strip_control

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

WITHIN_TASK = "within_task"
"""In place of a task: the mean over tasks, each with thresholds of its own, by their examples."""
MIN_TASK_EXAMPLES = 50
AUDC, SMALL, GAIN = "audc", "quality_small", "audc_over_random"
RATE, COST = "rate_at_quality", "cost_at_quality"


@dataclass(frozen=True, eq=False)
class Drawn:
    """One measure of every small model."""

    task: str
    """`ALL_TASKS`, `WITHIN_TASK` or a task."""
    measure: str
    values: FloatArray
    """[S]"""
    draws: FloatArray
    """[S, B] on redrawn examples."""


@dataclass(frozen=True)
class Contrast:
    """One measure of one arm minus that of another."""

    first: str
    second: str
    task: str
    measure: str
    difference: Difference


@dataclass(frozen=True, kw_only=True)
class Target:
    """A quality, and where each small model's cascade reaches it."""

    quality: float
    rate: list[float]
    """[S] smallest deferral rate; 1 where none does."""
    cost: list[float]
    """[S] FLOPs per token there."""
    reached: list[bool]
    """[S]"""


def contrasts(arms: Sequence[str], drawn: Sequence[Drawn]) -> list[Contrast]:
    """Every two arms by every measure.

    Args:
        arms: that each small model is a seed of.
        drawn: the measures.
    """
    return [
        Contrast(first, second, one.task, one.measure, arm_difference(
            (one.values[ours], one.draws[ours]), (one.values[theirs], one.draws[theirs]),
            lower_is_better=one.measure in (RATE, COST),
        ))
        for (first, ours), (second, theirs) in combinations(seeds_of(arms).items(), 2)
        for one in drawn
    ]  # fmt: skip


def find_target(measured: Sequence[Measured], quality: float | None) -> Target:
    """Where each cascade reaches a quality.

    Args:
        measured: the small models.
        quality: to reach; None for the middle of the first arm's small models, taken together, and
            the large model.
    """
    if quality is None:
        first = [one.curve.quality_small for one in measured if one.arm == measured[0].arm]
        quality = (sum(first) / len(first) + measured[0].curve.quality_large) / 2.0
    rates = [
        deferral_curve(
            one.main.scored.score, one.pair.small_quality, one.pair.large_quality
        ).rate_for(quality)
        for one in measured
    ]
    sure = [1.0 if rate is None else rate for rate in rates]
    costs = [float(_cost(one, np.array(rate))) for one, rate in zip(measured, sure, strict=True)]
    return Target(
        quality=quality, rate=sure, cost=costs, reached=[rate is not None for rate in rates]
    )


def drawn_measures(
    measured: Sequence[Measured], area_draws: FloatArray, target: Target
) -> list[Drawn]:
    """Every measure by the main rule, the area over all examples first.

    Args:
        measured: the small models.
        area_draws: [S, B] areas over all examples, of `bootstrap.area_draws`.
        target: the quality at which costs are compared.
    """
    large = measured[0].pair.large_quality
    series = [(one.main.scored.score, one.pair.small_quality) for one in measured]
    pooled = pooled_draws(series, large, target.quality)
    costs = np.stack([_cost(one, rate) for one, rate in zip(measured, pooled.rate, strict=True)])
    draws = {
        AUDC: area_draws,
        SMALL: pooled.small,
        GAIN: area_draws - (pooled.small + pooled.large) / 2.0,
    }
    return [
        *(Drawn(ALL_TASKS, name, np.array([one.main.figures[name] for one in measured]), redrawn)
          for name, redrawn in draws.items()),
        Drawn(ALL_TASKS, RATE, np.array(target.rate), pooled.rate),
        Drawn(ALL_TASKS, COST, np.array(target.cost), costs),
        *(_by_task(measured, series, large) if measured[0].tasks else []),
    ]  # fmt: skip


def _by_task(
    measured: Sequence[Measured], series: Sequence[Series], large: FloatArray
) -> list[Drawn]:
    """Within all tasks together, and each task that has `MIN_TASK_EXAMPLES`."""
    names = list(measured[0].tasks)
    own = np.array(measured[0].pair.tasks, dtype=object)
    tasks = task_draws(series, large, [np.flatnonzero(own == name) for name in names])
    found = []
    for name, task in zip(names, tasks, strict=True):
        curves = [figures(one.tasks[name]) for one in measured]
        draws = {AUDC: task.area, SMALL: task.small,
                 GAIN: task.area - (task.small + task.large) / 2.0}  # fmt: skip
        label = strip_control(name) or NO_TASK
        found += [Drawn(label, measure, np.array([one[measure] for one in curves]), redrawn)
                  for measure, redrawn in draws.items()]  # fmt: skip
    counts = np.array([measured[0].tasks[name].num_examples for name in names])
    sizes = np.stack([task.size for task in tasks])
    within = [_within([one for one in found if one.measure == measure], counts, sizes)
              for measure in (AUDC, GAIN)]  # fmt: skip
    enough = np.repeat(counts >= MIN_TASK_EXAMPLES, len(found) // len(names))
    return [*within, *compress(found, enough)]


def _within(tasks: Sequence[Drawn], counts: IntArray, sizes: FloatArray) -> Drawn:
    """Mean of a measure over tasks of `counts` [T] examples, of which draws hold `sizes` [T, B]."""
    # Products and sums by element, so that equal small models have equal means to the last bit.
    values = sum(count * one.values for count, one in zip(counts, tasks, strict=True))
    draws = sum(size * one.draws for size, one in zip(sizes, tasks, strict=True))
    return Drawn(WITHIN_TASK, tasks[0].measure, values / counts.sum(), draws / sizes.sum(axis=0))


def _cost(one: Measured, rate: FloatArray) -> FloatArray:
    """FLOPs per token at these deferral rates."""
    return token_cost(
        rate,
        one.pair.small.num_parameters,
        one.pair.large.num_parameters,
        before_generation=one.main.scored.before_generation,
    )
