"""Cascades of predictions files, measured one by one, and examples repeated by hand."""

import numpy as np
import numpy.typing as npt

from caskd.eval import DeferralCurve, deferral_curve
from caskd.eval.answers import read_predictions
from caskd.eval.rules import Pair

FloatArray = npt.NDArray[np.float64]


def join_files(small: str, large: str) -> Pair:
    """Two files of `caskd predict`, joined."""
    return Pair(read_predictions(small), read_predictions(large))


def file_curve(small: str, large: str, task: str | None = None) -> DeferralCurve:
    """Curve of the rule `average` over all examples, or over those of one task."""
    pair = join_files(small, large)
    chosen = np.array([task in (None, own) for own in pair.tasks])
    return deferral_curve(
        pair.score("average")[chosen], pair.small_quality[chosen], pair.large_quality[chosen]
    )


def repeated_examples(
    indices: npt.NDArray[np.int64], weights: FloatArray, *arrays: FloatArray
) -> list[FloatArray]:
    """Of arrays [E] the values at `indices`, each repeated by its weight [E]."""
    counts = weights[indices].astype(int)
    return [np.repeat(array[indices], counts) for array in arrays]
