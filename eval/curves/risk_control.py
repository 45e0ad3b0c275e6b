"""Thresholds with a guarantee: conformal risk control, and a quantile of the cost.

Both need nothing of the models or the score but that calibration and later questions are
exchangeable, as questions drawn from one distribution are.

Legend: E examples, Q questions.
"""

import math

import numpy as np
import numpy.typing as npt

from caskd.eval.answers import Units, num_units
from caskd.eval.curves.deferral import defer_order

FloatArray = npt.NDArray[np.float64]


def safe_threshold(score: FloatArray, loss: FloatArray, limit: float, units: Units = None) -> float:
    """The highest threshold whose expected loss on a new question is at most `limit`.

    Conformal risk control (Angelopoulos et al., arXiv 2208.02814, theorem 1): of the thresholds t
    with (Q R(t) + 1) / (Q + 1) <= limit the highest, where R(t) is the mean over the calibration
    questions of the loss of the answers that are kept, those with score < t. The loss grows with t,
    so that the expectation over calibration questions and a new one is at most `limit`.

    Args:
        score: [E] deferral score of the calibration examples.
        loss: [E] loss of keeping each answer, from 0 to 1.
        limit: bound of the expected loss.
        units: question of each example; a question's loss is the mean over its examples.

    Returns:
        Defer where score >= threshold. Infinity keeps everything; minus infinity defers everything,
        because too few questions, or no threshold, bound the loss.
    """
    questions = num_units(units, score.size)
    shares = _shares(score.size, units)
    order, ends = defer_order(score)
    lost = np.concatenate(([0.0], np.cumsum((shares * loss)[order[::-1]])))
    total = lost[score.size - ends]  # kept at each point, from everything to nothing
    # A sum in floating point may exceed a bound that it meets exactly.
    safe = np.flatnonzero((total + 1.0) / (questions + 1) <= limit + 1e-12)
    if not safe.size:
        return -math.inf
    if safe[0] == 0:
        return math.inf
    return float(score[order][ends[safe[0]] - 1])


def quantile_bound(value: FloatArray, delta: float, units: Units = None) -> float | None:
    """A bound that the value of a new example exceeds with probability at most `delta`.

    The ceil((Q + 1) (1 - delta))-th smallest of the values, one for each question: its largest.

    Args:
        value: [E] of examples that had no part in any choice.
        delta: probability.
        units: question of each example.

    Returns:
        The bound; None if there are too few questions for one.
    """
    largest = value
    if units is not None:
        largest = np.full(num_units(units, value.size), -np.inf)
        np.maximum.at(largest, units_from_zero(units), value)
    rank = math.ceil((largest.size + 1) * (1.0 - delta) - 1e-9)
    return float(np.sort(largest)[rank - 1]) if rank <= largest.size else None


def units_from_zero(units: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    """[E] the same questions, numbered from 0 without gaps."""
    return np.unique(units, return_inverse=True)[1].astype(np.int64)


def _shares(count: int, units: Units) -> FloatArray:
    """[E] share of each example in its question."""
    if units is None:
        return np.ones(count)
    own = units_from_zero(units)
    return 1.0 / np.bincount(own)[own]
