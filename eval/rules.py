"""Deferral rules: one score per example from the log-probabilities of the small model's answer.

Higher scores are deferred first: a score is minus a statistic of the token log-probabilities.
"""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import numpy.typing as npt

from caskd.store.errors import UsageError

FloatArray = npt.NDArray[np.float64]


def deferral_scores(token_logprobs: Sequence[npt.ArrayLike], rule: str = "average") -> FloatArray:
    """Deferral score [E] of every example.

    Args:
        token_logprobs: for each example the log-probabilities of its answer's tokens.
        rule: `average` is minus the mean log-probability (CAT's rule, arXiv 2406.00060).

    Raises:
        UsageError: unknown rule, no example, an answer without tokens, or a NaN.
    """
    if rule not in RULES:
        raise UsageError(f"got rule {rule!r}, expected one of {', '.join(sorted(RULES))}")
    answers = [np.asarray(answer, dtype=np.float64) for answer in token_logprobs]
    if not answers:
        raise UsageError("got no example, expected the log-probabilities of at least one answer")
    empty = next((i for i, answer in enumerate(answers) if answer.size == 0), None)
    if empty is not None:
        raise UsageError(
            f"got an answer without tokens (example {empty}), expected at least one token"
        )
    scores = np.array([RULES[rule](answer) for answer in answers])
    bad = np.flatnonzero(~np.isfinite(scores))
    if bad.size:
        raise UsageError(
            f"got score {scores[bad[0]]} (example {bad[0]}), expected finite log-probabilities"
        )
    return scores


def _average(answer: FloatArray) -> float:
    return -float(answer.mean())


RULES: Mapping[str, Callable[[FloatArray], float]] = {"average": _average}
