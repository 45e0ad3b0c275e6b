"""Scores of every rule on every small model; fitted rules are fitted first.

Legend: E examples.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from caskd.eval.rules.fitted import ROUTERS, Router, fit_router
from caskd.eval.rules.fixed import DEFAULT_RULES, fixed_rule, unknown_rule
from caskd.eval.rules.pairs import Pair
from caskd.store.errors import UsageError

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class RuleScores:
    """Scores of one rule on one small model's answers."""

    rule: str
    score: FloatArray
    """[E]"""
    confidence: FloatArray | None
    """[E] the rule's probability that the answer is right; None if it has none."""
    router: Router | None = None
    """The fitted router of a fitted rule."""

    @property
    def before_generation(self) -> bool:
        """Whether the rule decides before the small model answers."""
        return self.router is not None and self.router.kind.before_generation

    @property
    def reads_prompt_alone(self) -> bool:
        """Whether the rule decides before the small model reads the prompt."""
        return self.router is not None and self.router.kind.column == "prompt"

    def apply(self, pair: Pair) -> FloatArray:
        """Scores [E] of the same rule, without refitting, on other examples."""
        return self.router.score(pair) if self.router else pair.score(self.rule)


def score_pairs(
    tests: Sequence[Pair], fits: Sequence[Pair] | None, wanted: Sequence[str]
) -> tuple[list[dict[str, RuleScores]], list[str]]:
    """Score every small model by every rule.

    Args:
        tests: the examples to score, one pair per small model.
        fits: the examples to fit on, in the same order; None without a calibration split.
        wanted: names of rules; empty for all rules whose columns the predictions have.

    Returns:
        Scores by rule of each pair, in one order for all, and a line for each rule that was left
        out. Only default rules are left out.

    Raises:
        UsageError: a rule in `wanted` is unknown or cannot be computed.
    """
    scores: list[dict[str, RuleScores]] = [{} for _ in tests]
    left_out = []
    for name in dict.fromkeys(wanted) or _candidates(fits is not None):
        try:
            found = [
                _score(name, test, fits[index] if fits else None)
                for index, test in enumerate(tests)
            ]
        except UsageError as error:
            quality_alone = any(not test.has("token_logprobs") for test in tests)
            if wanted or (name == DEFAULT_RULES[0] and not quality_alone):
                raise
            left_out.append(f"{name}: {error}")
            continue
        for by_rule, rule_scores in zip(scores, found, strict=True):
            by_rule[name] = rule_scores
    if not scores[0]:
        raise UsageError(
            f"--small: no deferral rule can be computed ({left_out[0]}); expected one; "
            "prompt-router needs the question alone: pass --data FILE, --calibration 0.5 and "
            "--rule prompt-router"
        )
    return scores, left_out


def _candidates(can_fit: bool) -> list[str]:
    return [*DEFAULT_RULES, *(ROUTERS if can_fit else ())]


def _score(name: str, test: Pair, fit: Pair | None) -> RuleScores:
    rule = fixed_rule(name)
    if rule is not None:
        score = test.score(name)
        return RuleScores(name, score, rule.confidence(score))
    if name not in ROUTERS:
        raise unknown_rule(name, ROUTERS)
    if fit is None:
        raise UsageError(
            f"--rule {name}: needs examples to fit on; expected others than those that measure it; "
            "pass --calibration 0.2, or --calibration-small and --calibration-large"
        )
    kind = ROUTERS[name]
    router = fit_router(kind, fit, fit.small_quality, fit.large_quality, units=fit.units)
    score = router.score(test)
    return RuleScores(name, score, 1.0 - score if kind.has_confidence else None, router)
