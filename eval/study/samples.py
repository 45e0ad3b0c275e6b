"""Sample examples on both sides of the threshold, for people to read."""

import math
import sys
from typing import Any

import numpy as np
import numpy.typing as npt

from caskd.eval.rules import RuleScores
from caskd.eval.study.measure import CascadeResult
from caskd.store.io import strip_control

NEAR, FAR = 8, 4
MAX_LETTERS = 300


def default_threshold(result: CascadeResult) -> float:
    """Where the cascade recovers 80 % of the lead, or where it defers half if it never does."""
    recovered = result.curve.cpt(0.8)
    rate = 0.5 if recovered is None else recovered
    return float(result.curve.threshold[np.searchsorted(result.curve.deferral_rate, rate)])


def sample_rows(
    result: CascadeResult, scores: RuleScores, threshold: float
) -> list[dict[str, Any]]:
    """Examples next to the threshold, and the worst errors of the score.

    Returns:
        One row per example: its side of the threshold, its score, the question (with `--data`),
        the reference, both answers and their qualities.
    """
    score, pair = scores.score, result.pair
    rising = np.argsort(score, kind="stable")
    kept, deferred = rising[score[rising] < threshold], rising[score[rising] >= threshold]
    wrong, right = pair.small_quality < 0.5, pair.small_quality >= 0.5
    groups = {
        "kept, just": kept[::-1][:NEAR],
        "deferred, just": deferred[:NEAR],
        "kept and wrong, surest": kept[wrong[kept]][:FAR],
        "deferred though right, least sure": deferred[right[deferred]][::-1][:FAR],
    }
    return [row for side, indices in groups.items() for row in _rows(result, scores, side, indices)]


def _rows(
    result: CascadeResult, scores: RuleScores, side: str, indices: npt.NDArray[np.int64]
) -> list[dict[str, Any]]:
    if not indices.size:
        return []
    pair = result.pair.take(indices)
    questions = pair.texts("prompt") if pair.has("prompt") else [""] * len(pair)
    columns = {
        "example": pair.large.strings("example_id"),
        "task": pair.tasks,
        "question": questions,
        "reference": pair.large.strings("reference"),
        "small_answer": pair.small.strings("text"),
        "large_answer": pair.large.strings("text"),
    }
    return [
        {
            "side": side,
            "score": _shown(float(scores.score[index])),
            **{name: _short(values[row]) for name, values in columns.items()},
            "small_quality": float(pair.small_quality[row]),
            "large_quality": float(pair.large_quality[row]),
        }
        for row, index in enumerate(indices)
    ]


def _shown(score: float) -> float:
    """An infinite score as infinity again."""
    return math.copysign(math.inf, score) if abs(score) == sys.float_info.max else score


def _short(text: str) -> str:
    text = strip_control(" ".join(text.split()))
    return text if len(text) <= MAX_LETTERS else text[:MAX_LETTERS] + " ..."
