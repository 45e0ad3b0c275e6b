"""Fixed deferral rules: one score per example from the stored columns of the small model's answer.

Higher scores are deferred first; most rules are minus a statistic of the token log-probabilities. A
new rule is one line in `RULES`. Fitted rules are in `fitted.py`.
"""

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from caskd.eval.answers import Ragged
from caskd.eval.curves import finite_scores
from caskd.store.errors import UsageError

FloatArray = npt.NDArray[np.float64]

QUANTILE = "quantile-"


@dataclass(frozen=True)
class Rule:
    """A deferral rule that needs no fitting."""

    name: str
    column: str
    """The stored column that it reads."""
    statistic: Callable[[Ragged], FloatArray]
    """[E] score, from that column."""
    confidence: Callable[[FloatArray], FloatArray | None] = lambda score: np.exp(-score)
    """[E] the probability that an answer is right, from the score; None if there is none."""


def _unknown(score: FloatArray) -> None:
    """A score that is no probability, so that its calibration cannot be measured."""


def _stated(score: FloatArray) -> FloatArray | None:
    """Minus the score, where all of it is a probability."""
    return -score if score.min() >= -1.0 and score.max() <= 0.0 else None


def _option(options: Ragged) -> FloatArray:
    """Minus the log-probability of the likeliest option, among the options alone; infinity if no
    option has any probability."""
    best = options.max()
    none = np.isneginf(best)
    if none.any():
        known = np.where(np.repeat(none, options.lengths), 0.0, options.values)
        return np.where(none, np.inf, _option(Ragged(known, options.offsets)))
    rest = Ragged(np.exp(options.values - np.repeat(best, options.lengths)), options.offsets)
    return np.log(rest.sum())


_LOGPROBS = "token_logprobs"
RULES: Mapping[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule("average", _LOGPROBS, lambda tokens: -tokens.mean()),
        Rule("sum", _LOGPROBS, lambda tokens: -tokens.sum()),
        Rule("min", _LOGPROBS, lambda tokens: -tokens.min()),
        Rule("max", _LOGPROBS, lambda tokens: -tokens.max()),
        Rule("first-token", _LOGPROBS, lambda tokens: -tokens.first()),
        Rule("option", "option_logprobs", _option),
        Rule("entropy", "token_entropies", Ragged.mean, _unknown),
        Rule("margin", "token_margins", lambda margins: -margins.mean(), _unknown),
    )
}
OUTCOME_RULES: Mapping[str, Rule] = {
    rule.name: rule
    for rule in (
        Rule("score", "score", Ragged.first, _unknown),
        Rule("confidence", "score", Ragged.first, _stated),
        Rule("none", "score", Ragged.first, _unknown),
    )
}
"""Rules of outcome tables: the column `score`, minus the column `confidence`, or one score for all
examples where the table has neither."""
DEFAULT_RULES = tuple(
    name for rule in RULES for name in ((rule, f"{QUANTILE}0.4") if rule == "max" else (rule,))
)
"""Every rule, and one quantile after `max`; a report shows them in this order."""


def fixed_rule(name: str) -> Rule | None:
    """The fixed rule of this name: one of `RULES` or `OUTCOME_RULES`, or `quantile-Q`.

    `average` is minus the mean log-probability (CAT, arXiv 2406.00060); `quantile-Q` minus the
    Q-quantile (Gupta et al., arXiv 2404.10136), of which Q = 0 is `min` and Q = 1 is `max`;
    `first-token` is P(T) (arXiv 2602.22090), and `option` the same among the options of a
    multiple-choice task; `entropy` and `margin` average over the tokens.

    Returns:
        The rule, or None if no fixed rule has this name.

    Raises:
        UsageError: Q is not a number from 0 to 1.
    """
    if not name.startswith(QUANTILE):
        return RULES.get(name) or OUTCOME_RULES.get(name)
    try:
        share = float(name.removeprefix(QUANTILE))
    except ValueError:
        share = -1.0
    if not 0.0 <= share <= 1.0:
        raise UsageError(
            f"rule {name!r}: expected {QUANTILE}Q with Q from 0 to 1; pass a name such as "
            "quantile-0.4"
        )
    return Rule(name, _LOGPROBS, lambda tokens: -tokens.quantiles([share])[:, 0])


def unknown_rule(name: str, others: Collection[str] = ()) -> UsageError:
    """The error for a name that no rule has."""
    known = ", ".join(sorted({*RULES, f"{QUANTILE}Q", *others}))
    return UsageError(f"rule {name!r}: unknown; expected one of {known}; pass one of them")


def deferral_scores(column: Ragged, rule: Rule) -> FloatArray:
    """Deferral score [E] of every example.

    An infinite score, as of a log-probability of -inf, becomes the largest number of its sign: all
    such answers are one block, deferred first (or last), with a finite threshold.

    Args:
        column: numbers of `rule.column` of each example.
        rule: turns them into a score.

    Raises:
        UsageError: there is no example, an answer has no tokens, or a score is NaN.
    """
    if not len(column):
        raise UsageError(
            f"{rule.column}: got no example; expected the values of at least one answer; pass "
            "predictions with examples"
        )
    empty = np.flatnonzero(column.lengths == 0)
    if empty.size:
        raise UsageError(
            f"example {empty[0]}: its answer has no {rule.column}; expected at least one value; "
            "remove that example, or rerun caskd predict"
        )
    scores = rule.statistic(column)
    bad = np.flatnonzero(np.isnan(scores))
    if bad.size:
        raise UsageError(
            f"example {bad[0]}: score is {scores[bad[0]]}; expected numbers in {rule.column}; "
            "remove that example, or rerun caskd predict with --dtype float32"
        )
    return finite_scores(scores)
