"""A chain of three or more models on stored predictions: the frontier of its threshold settings.

Legend: F points of the frontier, M models that may defer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from caskd.eval.answers import Predictions
from caskd.eval.curves import (
    MAX_ROUTED,
    Beliefs,
    CascadeRouter,
    Frontier,
    Link,
    Price,
    answer_cost,
    apply_thresholds,
    chain_frontier,
    isotonic_confidence,
    money,
    price_of,
    unbeaten,
)
from caskd.eval.rules import Pair, RuleScores
from caskd.store.errors import UsageError
from caskd.store.io import strip_control, value_text
from caskd.store.spacing import thin

FloatArray = npt.NDArray[np.float64]

MAX_POINTS = 200


@dataclass(frozen=True, eq=False)
class RoutingResult:
    """Cost and quality of cascade routing (arXiv 2410.10347) with the same models and rule."""

    models: list[str]
    lambdas: FloatArray
    """[F] prices of cost in quality that no other beats on the calibration split."""
    cost: FloatArray
    """[F] on the test split."""
    quality: FloatArray
    """[F] on the test split."""
    answered: FloatArray
    """[F, M + 1] share of the test examples that each model answers."""
    num_settings: int

    def rows(self) -> list[dict[str, Any]]:
        """One row per lambda."""
        return [
            {
                "cost": float(self.cost[point]),
                "quality": float(self.quality[point]),
                "lambda": float(self.lambdas[point]),
                **{
                    f"share answered by {number}: {name}": float(share)
                    for number, (name, share) in enumerate(
                        zip(self.models, self.answered[point], strict=True), 1
                    )
                },
            }
            for point in range(self.cost.size)
        ]


@dataclass(frozen=True, eq=False)
class ChainResult:
    """Cost and quality of a chain along its frontier."""

    models: list[str]
    """Names, from the first to answer to the last."""
    rule: str
    chosen: Frontier
    """The frontier on the split that chose the thresholds."""
    cost: FloatArray
    """[F] on the test split."""
    quality: FloatArray
    """[F] on the test split."""
    calibrated: bool
    """Whether a calibration split chose the thresholds."""
    pairs: list[Pair]
    """Each model but the last on the test split, with the last."""
    routing: RoutingResult | str
    """Cascade routing of the same models, or why it was left out."""

    def summary(self) -> dict[str, Any]:
        """The chain in summary.json."""
        return {
            "models": self.models,
            "rule": self.rule,
            "thresholds_chosen_on": "calibration" if self.calibrated else "test",
            "num_settings": self.chosen.num_settings,
            "points": self.rows(),
            "cascade_routing": {"left_out": self.routing}
            if isinstance(self.routing, str)
            else {"num_settings": self.routing.num_settings, "points": self.routing.rows()},
        }

    def rows(self) -> list[dict[str, Any]]:
        """One row per point of the frontier."""
        passing = self.models[:-1]
        return [
            {
                "cost": float(self.cost[point]),
                "quality": float(self.quality[point]),
                **{
                    f"threshold {number}: {name}": _finite(
                        self.chosen.thresholds[point, number - 1]
                    )
                    for number, name in enumerate(passing, 1)
                },
                **{
                    f"share answered by {number}: {name}": float(share)
                    for number, (name, share) in enumerate(
                        zip(self.models, self.chosen.answered[point], strict=True), 1
                    )
                },
            }
            for point in range(self.cost.size)
        ]


def measure_chain(
    tests: Sequence[Pair],
    calibrations: Sequence[Pair] | None,
    scores: Sequence[RuleScores],
    prices: Mapping[str, Price] | None,
) -> ChainResult:
    """Choose thresholds on the calibration split, or without one on the test split; measure on the
    test split.

    Args:
        tests: each model of the chain but the last, joined with the last.
        calibrations: the same on the calibration split.
        scores: one rule's scores of each model on the test split.
        prices: prices of tokens, if cost is money; None for FLOPs per token.

    Raises:
        UsageError: fewer than three models, or a model has no price.
    """
    links = _links(tests, [model.score for model in scores], scores[0], prices)
    last_cost = _cost(tests[0].large, prices)
    chosen = links, tests[0].large_quality, last_cost
    if calibrations is not None:
        applied = [model.apply(pair) for model, pair in zip(scores, calibrations, strict=True)]
        chosen = (
            _links(calibrations, applied, scores[0], prices),
            calibrations[0].large_quality,
            _cost(calibrations[0].large, prices),
        )
    frontier = _thin(chain_frontier(*chosen))
    points = [
        apply_thresholds(links, tests[0].large_quality, last_cost, thresholds)[:2]
        for thresholds in frontier.thresholds
    ]
    cost, quality = np.array(points).T
    models = [strip_control(pair.small.model_name) for pair in tests]
    models.append(strip_control(tests[0].large.model_name))
    return ChainResult(
        models=models,
        rule=scores[0].rule,
        chosen=frontier,
        cost=cost,
        quality=quality,
        calibrated=calibrations is not None,
        pairs=list(tests),
        routing=_routing(models, tests, calibrations, scores, (links, last_cost), chosen),
    )


def _routing(
    models: list[str],
    tests: Sequence[Pair],
    calibrations: Sequence[Pair] | None,
    scores: Sequence[RuleScores],
    costs: tuple[Sequence[Link], FloatArray],
    chosen: tuple[Sequence[Link], FloatArray, FloatArray],
) -> RoutingResult | str:
    """Cascade routing, its beliefs and lambdas from the calibration split; or what it lacks."""
    if calibrations is None:
        return "it fits its estimates on other examples; pass --calibration 0.5"
    if len(models) > MAX_ROUTED:
        return f"it compares all sets of up to {MAX_ROUTED} models, not of {len(models)}"
    if scores[0].rule == "none" or scores[0].router is not None:
        return f"rule {scores[0].rule} scores no answer of the last model; pass a rule of answers"
    try:
        last = [Pair(pairs[0].large, pairs[0].large).score(scores[0].rule)
                for pairs in (calibrations, tests)]  # fmt: skip
    except UsageError as error:
        return f"it needs the last model's scores: {error}"
    seen = [*(link.score for link in chosen[0]), last[0]]
    right = [*(pair.small_quality for pair in calibrations), chosen[1]]
    new = [*(link.score for link in costs[0]), last[1]]
    known, estimates = (
        np.stack([isotonic_confidence(*of) for of in zip(seen, right, scored, strict=True)], axis=1)
        for scored in (seen, new)
    )
    spent = np.stack([*(link.cost for link in chosen[0]), chosen[2]], axis=1)
    beliefs = Beliefs.of(known, spent)
    router = CascadeRouter(beliefs, known)
    tried = [router.measure(one, np.stack(right, axis=1), spent) for one in beliefs.lambdas]
    best = unbeaten(*(np.array([point[axis] for point in tried]) for axis in (0, 1)))
    lambdas = beliefs.lambdas[best]
    router = CascadeRouter(beliefs, estimates)
    quality = np.stack([*(pair.small_quality for pair in tests), tests[0].large_quality], 1)
    paid = np.stack([*(link.cost for link in costs[0]), costs[1]], 1)
    points = [router.measure(one, quality, paid) for one in lambdas]
    return RoutingResult(
        models=models,
        lambdas=lambdas,
        cost=np.array([point[0] for point in points]),
        quality=np.array([point[1] for point in points]),
        answered=np.stack([point[2] for point in points]),
        num_settings=beliefs.lambdas.size,
    )


def _links(
    pairs: Sequence[Pair],
    scores: Sequence[FloatArray],
    rule: RuleScores,
    prices: Mapping[str, Price] | None,
) -> list[Link]:
    return [
        Link(score, pair.small_quality, _cost(pair.small, prices), _saved(pair.small, rule, prices))
        for pair, score in zip(pairs, scores, strict=True)
    ]


def _saved(
    small: Predictions, rule: RuleScores, prices: Mapping[str, Price] | None
) -> FloatArray | None:
    """Cost [E] of a model that examples do not incur which the rule defers before its answer."""
    if not rule.before_generation:
        return None
    if prices is None or small.is_outcomes or rule.reads_prompt_alone:
        return _cost(small, prices)
    return money(small, price_of(prices, small.model_name))[1]


def _cost(predictions: Predictions, prices: Mapping[str, Price] | None) -> FloatArray:
    """Cost [E] of reading the prompts and of writing the answers."""
    if prices is None or predictions.is_outcomes:
        if not predictions.has_cost:
            raise UsageError(
                f"--chain: the number of parameters of {value_text(predictions.model_name)} is not "
                "known, nor its FLOPs; expected a price list; pass --prices FILE"
            )
        return answer_cost(predictions)
    read, written = money(predictions, price_of(prices, predictions.model_name))
    return read + written


def _thin(frontier: Frontier) -> Frontier:
    points = thin(frontier.cost.size, MAX_POINTS)
    return Frontier(
        frontier.cost[points],
        frontier.quality[points],
        frontier.thresholds[points],
        frontier.answered[points],
        frontier.num_settings,
    )


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None
