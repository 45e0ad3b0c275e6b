"""Every arm against every other: by area, small model, gain over random, and cost; and by task.

Legend: E examples, S small models, T tasks, B bootstrap replicates.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations, compress

import numpy as np
import numpy.typing as npt

from caskd.eval.answers import num_units, seeds_of
from caskd.eval.curves import curve_figures, deferral_curve, token_cost
from caskd.eval.stats import (
    Difference,
    Series,
    arm_difference,
    pooled_replicates,
    replicates_by_task,
)
from caskd.eval.study.measure import ALL_TASKS, NO_TASK, CascadeResult
from caskd.store.io import strip_control

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]

WITHIN_TASK = "within_task"
"""In place of a task: the mean over tasks, each with its own thresholds, weighted by examples."""
MIN_TASK_EXAMPLES = 50
ENOUGH_SEEDS = 5
AUDC, SMALL, GAIN = "audc", "quality_small", "audc_over_random"
RATE, COST = "rate_at_quality", "cost_at_quality"


@dataclass(frozen=True, eq=False)
class FigureReplicates:
    """One figure of every small model, with its bootstrap replicates."""

    task: str
    """`ALL_TASKS`, `WITHIN_TASK` or a task."""
    measure: str
    """Name of the figure: `AUDC`, `SMALL`, `GAIN`, `RATE` or `COST`."""
    values: FloatArray
    """[S]"""
    replicates: FloatArray
    """[S, B] the same figure on resampled examples."""


@dataclass(frozen=True)
class Contrast:
    """One figure of one arm minus that of another."""

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
    """[S] smallest deferral rate that reaches it; 1 if none does."""
    cost: list[float | None]
    """[S] FLOPs per token at that rate; None if a model's parameters are not known."""
    reached: list[bool]
    """[S] whether any rate reaches it."""


def contrasts(arms: Sequence[str], figures: Sequence[FigureReplicates]) -> list[Contrast]:
    """Every pair of arms by every figure.

    Args:
        arms: the arm of each small model.
        figures: the figures to compare.
    """
    found = []
    for (first, ours), (second, theirs) in combinations(seeds_of(arms).items(), 2):
        for figure in figures:
            difference = arm_difference(
                (figure.values[ours], figure.replicates[ours]),
                (figure.values[theirs], figure.replicates[theirs]),
                lower_is_better=figure.measure in (RATE, COST),
            )
            found.append(Contrast(first, second, figure.task, figure.measure, difference))
    return found


def seed_warnings(arms: Sequence[str]) -> Iterator[str]:
    """What the seeds of each pair of arms cannot tell; nothing if there is one arm.

    Args:
        arms: the arm of each small model.
    """
    counts = {arm: len(seeds) for arm, seeds in seeds_of(arms).items()}
    single = [arm for arm, count in counts.items() if count == 1]
    if single and len(counts) > 1:
        yield (
            f"One seed of {', '.join(single)}: intervals and verdicts do not cover what another "
            f"training run would give; train at least {ENOUGH_SEEDS} seeds of each arm."
        )
    for first, second in combinations(counts, 2):
        fewest = min(counts[first], counts[second])
        if 1 < fewest < ENOUGH_SEEDS:
            yield (
                f"{first} and {second}: an interval over {fewest} seeds is too narrow; "
                f"train at least {ENOUGH_SEEDS}."
            )


def find_target(results: Sequence[CascadeResult], quality: float | None) -> Target:
    """Where each cascade reaches a quality.

    Args:
        results: one for each small model.
        quality: to reach; None for halfway between the mean of the first arm's small models and
            the large model.
    """
    if quality is None:
        first = [r.curve.quality_small for r in results if r.arm == results[0].arm]
        quality = (sum(first) / len(first) + results[0].curve.quality_large) / 2.0
    rates = [
        deferral_curve(
            result.main.scores.score, result.pair.small_quality, result.pair.large_quality
        ).rate_for(quality)
        for result in results
    ]
    sure = [1.0 if rate is None else rate for rate in rates]
    costs = [
        float(_cost(r, np.array(rate))) if r.has_cost else None
        for r, rate in zip(results, sure, strict=True)
    ]
    return Target(
        quality=quality, rate=sure, cost=costs, reached=[rate is not None for rate in rates]
    )


def figure_replicates(
    results: Sequence[CascadeResult], area_replicates: FloatArray, target: Target
) -> list[FigureReplicates]:
    """Every figure by the main rule, the area over all examples first.

    Args:
        results: one for each small model.
        area_replicates: [S, B] areas over all examples, from `bootstrap.area_replicates`.
        target: the quality at which costs are compared.
    """
    large = results[0].pair.large_quality
    series = [(result.main.scores.score, result.pair.small_quality) for result in results]
    pooled = pooled_replicates(series, large, target.quality, units=results[0].pair.units)
    main = [result.main.figures for result in results]
    by_task = _by_task(results, series, large) if results[0].tasks else []
    return [
        *_three_figures(ALL_TASKS, main, area_replicates, pooled.small, pooled.large),
        FigureReplicates(ALL_TASKS, RATE, np.array(target.rate), pooled.rate),
        *_costs(results, pooled.rate, target),
        *by_task,
    ]


def _costs(
    results: Sequence[CascadeResult], rate: FloatArray, target: Target
) -> Iterator[FigureReplicates]:
    """Cost at the target from replicates [S, B] of the rate; nothing where it is not known."""
    known = [cost for cost in target.cost if cost is not None]
    if len(known) == len(results):
        costs = np.stack([_cost(result, each) for result, each in zip(results, rate, strict=True)])
        yield FigureReplicates(ALL_TASKS, COST, np.array(known), costs)


def _three_figures(
    task: str,
    figures: Sequence[Mapping[str, float]],
    area: FloatArray,
    small: FloatArray,
    large: FloatArray,
) -> list[FigureReplicates]:
    """Area, small model alone and gain over random, from replicates [S, B] of areas and means."""
    replicates = {AUDC: area, SMALL: small, GAIN: area - (small + large) / 2.0}
    return [
        FigureReplicates(task, name, np.array([row[name] for row in figures]), values)
        for name, values in replicates.items()
    ]


def _by_task(
    results: Sequence[CascadeResult], series: Sequence[Series], large: FloatArray
) -> list[FigureReplicates]:
    """Within all tasks together, and each task with `MIN_TASK_EXAMPLES` different questions."""
    names = list(results[0].tasks)
    task_of = np.array(results[0].pair.tasks, dtype=object)
    units = results[0].pair.units
    parts = [np.flatnonzero(task_of == name) for name in names]
    tasks = replicates_by_task(series, large, parts, units=units)
    found = []
    for name, task in zip(names, tasks, strict=True):
        figures = [curve_figures(result.tasks[name]) for result in results]
        found += _three_figures(
            strip_control(name) or NO_TASK, figures, task.area, task.small, task.large
        )
    counts = np.array([results[0].tasks[name].num_examples for name in names])
    sizes = np.stack([task.size for task in tasks])
    within = [
        _within([figure for figure in found if figure.measure == measure], counts, sizes)
        for measure in (AUDC, GAIN)
    ]
    questions = [num_units(None if units is None else units[part], part.size) for part in parts]
    enough = np.repeat(np.array(questions) >= MIN_TASK_EXAMPLES, len(found) // len(names))
    return [*within, *compress(found, enough)]


def _within(
    tasks: Sequence[FigureReplicates], counts: IntArray, sizes: FloatArray
) -> FigureReplicates:
    """Mean of a figure over tasks, weighted by their examples.

    Args:
        tasks: the figure in each task.
        counts: [T] examples of each task.
        sizes: [T, B] examples of each task in each replicate.
    """
    # Products and sums by element, so that equal small models have equal means to the last bit.
    values = sum(count * task.values for count, task in zip(counts, tasks, strict=True))
    replicates = sum(size * task.replicates for size, task in zip(sizes, tasks, strict=True))
    return FigureReplicates(
        WITHIN_TASK, tasks[0].measure, values / counts.sum(), replicates / sizes.sum(axis=0)
    )


def _cost(result: CascadeResult, rate: FloatArray) -> FloatArray:
    """Main cost at these deferral rates: FLOPs per token, or that of an outcome table."""
    if result.pair.small.is_outcomes:
        return np.interp(rate, result.curve.deferral_rate, result.main_cost)
    return token_cost(
        rate,
        result.pair.small.num_active_parameters,
        result.pair.large.num_active_parameters,
        before_generation=result.main.scores.before_generation,
    )
