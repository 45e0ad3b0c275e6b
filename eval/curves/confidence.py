"""How well a deferral score separates wrong answers of the small model from right ones.

These figures do not involve the large model. Equal scores are one block everywhere, so the order of
the examples changes nothing.

Legend: E examples.
"""

import numpy as np
import numpy.typing as npt
from scipy.optimize import isotonic_regression

from caskd.eval.curves.deferral import defer_order

FloatArray = npt.NDArray[np.float64]

NUM_BINS = 15


def auroc(score: FloatArray, quality: FloatArray) -> float | None:
    """Probability that a wrong answer has a higher score than a right one; equal scores count 1/2.

    An answer is wrong if its quality is below one half.

    Returns:
        The area under the ROC curve, or None if all answers are right or all are wrong.
    """
    wrong = quality < 0.5
    num_wrong = int(wrong.sum())
    num_right = wrong.size - num_wrong
    if not num_wrong or not num_right:
        return None
    order, ends = defer_order(score)
    wrongs = np.add.reduceat(wrong[order].astype(np.float64), ends[:-1])
    rights = np.diff(ends) - wrongs
    rights_after = num_right - np.cumsum(rights) + rights / 2.0
    return float(wrongs @ rights_after) / (num_wrong * num_right)


def aurc(score: FloatArray, quality: FloatArray) -> float:
    """Area under the risk-coverage curve: mean over k of 1 - quality of the k surest answers.

    A block of equal scores enters at its mean, which is the expectation over its orders.
    """
    order, ends = defer_order(score, quality)
    sizes = np.diff(ends)
    risk = np.add.reduceat(1.0 - quality[order], ends[:-1]) / sizes
    surest_first = np.repeat(risk, sizes)[::-1]
    return float(np.mean(np.cumsum(surest_first) / np.arange(1, score.size + 1)))


def isotonic_confidence(score: FloatArray, quality: FloatArray, new: FloatArray) -> FloatArray:
    """Expected quality of new answers from their scores, which need not be probabilities.

    Isotonic regression: the falling step function of the score that is nearest to the qualities. A
    new score has the value of the highest calibration score that is not above it, or of the lowest.

    Args:
        score: [E] of the calibration examples.
        quality: [E] of the calibration examples.
        new: [N] scores of other examples.

    Returns:
        [N] expected quality.
    """
    values, block, counts = np.unique(score, return_inverse=True, return_counts=True)
    means = np.bincount(block, weights=quality) / counts
    fitted = isotonic_regression(means, weights=counts, increasing=False).x
    return np.asarray(fitted[np.maximum(np.searchsorted(values, new, side="right") - 1, 0)])


def calibration_error(confidence: FloatArray, quality: FloatArray) -> float:
    """Expected calibration error: mean distance of confidence and quality over 15 equal bins.

    Args:
        confidence: [E] from 0 to 1.
        quality: [E] quality of the same answers.
    """
    index = np.clip((confidence * NUM_BINS).astype(np.int64), 0, NUM_BINS - 1)
    apart = np.bincount(index, weights=confidence - quality, minlength=NUM_BINS)
    return float(np.abs(apart).sum() / confidence.size)
