"""Figures of outcome tables with costs: benchmark scores of a cascade, and models that beat others.

Legend: P points of a curve.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import permutations
from typing import Any

import numpy as np
import numpy.typing as npt

from caskd.eval.curves import aiq, answer_cost, arena_score, dominates
from caskd.eval.outcomes import CALLS
from caskd.eval.rules import Pair
from caskd.eval.stats import interval, mean_replicates
from caskd.eval.study.measure import CascadeResult
from caskd.store.io import strip_control

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Domination:
    """A model that is better and no dearer than another: the two need no cascade."""

    better: str
    worse: str
    quality_difference: float
    low: float
    """95 % interval of the difference, over questions."""
    high: float
    better_cost: float
    """Mean per example."""
    worse_cost: float

    @property
    def sentence(self) -> str:
        """The finding in words."""
        return (
            f"Do not cascade {self.worse} and {self.better}: {self.better} alone is better by "
            f"{self.quality_difference:.4f} (95 % interval [{self.low:+.4f}, {self.high:+.4f}]) "
            f"and costs {self.better_cost:.4g} per example instead of {self.worse_cost:.4g}."
        )


def is_costed(pair: Pair) -> bool:
    """Whether a pair is of an outcome table that states costs."""
    return pair.large.is_outcomes and pair.large.cost_unit != CALLS


def dominations(pairs: Sequence[Pair]) -> Iterator[Domination]:
    """Every two models of which one beats the other; nothing without costs.

    Args:
        pairs: small models, each with the same large model on the same examples.
    """
    if not is_costed(pairs[0]):
        return
    models = [(pair.small, pair.small_quality) for pair in pairs]
    models.append((pairs[0].large, pairs[0].large_quality))
    points = [
        (strip_control(answers.model_name), float(answer_cost(answers).mean()), quality)
        for answers, quality in models
    ]
    for (name, cost, quality), (other, other_cost, other_quality) in permutations(points, 2):
        if not dominates((cost, float(quality.mean())), (other_cost, float(other_quality.mean()))):
            continue
        difference = quality - other_quality
        low, high = interval(mean_replicates(difference[None], units=pairs[0].units)[0])
        yield Domination(
            better=name,
            worse=other,
            quality_difference=float(difference.mean()),
            low=low,
            high=high,
            better_cost=cost,
            worse_cost=other_cost,
        )


def benchmark_rows(results: Sequence[CascadeResult]) -> list[dict[str, Any]]:
    """RouterArena's score and AIQ by small model and rule; empty without costs.

    RouterArena's score of a cascade is that of its best threshold, found on the same examples; its
    unit of cost is the US dollar.
    """
    if not is_costed(results[0].pair):
        return []
    return [
        {"small": result.label, "rule": name, **_figures(result, rule.main_cost, rule.curve)}
        for result in results
        for name, rule in result.rules.items()
    ]


def _figures(result: CascadeResult, cost: FloatArray, curve: Any) -> dict[str, Any]:
    pair = result.pair
    scores = [
        arena_score(1000.0 * spent, reached)
        for spent, reached in zip(cost.tolist(), curve.quality.tolist(), strict=True)
    ]
    best = max(range(len(scores)), key=lambda point: _or_less(scores[point]))
    large_cost = float(answer_cost(pair.large).mean())
    return {
        "aiq": aiq(cost, curve.quality),
        "arena_small": scores[0],
        "arena_large": arena_score(1000.0 * large_cost, curve.quality_large),
        "arena_best": scores[best],
        "arena_best_rate": float(curve.deferral_rate[best]),
    }


def _or_less(score: float | None) -> float:
    return -1.0 if score is None else score
