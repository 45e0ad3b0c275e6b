"""Deferral rules: fixed and fitted ones, and their scores on a pair of models."""

from caskd.eval.rules.fitted import ROUTERS, Router
from caskd.eval.rules.fixed import OUTCOME_RULES, deferral_scores, fixed_rule
from caskd.eval.rules.pairs import Pair
from caskd.eval.rules.scoring import RuleScores, score_pairs

__all__ = [
    "OUTCOME_RULES",
    "ROUTERS",
    "Pair",
    "Router",
    "RuleScores",
    "deferral_scores",
    "fixed_rule",
    "score_pairs",
]
