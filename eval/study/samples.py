"""Examples on both sides of the threshold, for people to read."""

from typing import Any

import numpy as np
import numpy.typing as npt

from caskd.eval.rules import Scored
from caskd.eval.study.measure import Measured
from caskd.store.io import strip_control

NEAR, FAR = 8, 4
MAX_LETTERS = 300


def default_threshold(one: Measured) -> float:
    """Where 80 % of the lead is recovered, else where half of the examples are deferred."""
    wanted = one.curve.cpt(0.8)
    rate = 0.5 if wanted is None else wanted
    return float(one.curve.threshold[np.searchsorted(one.curve.deferral_rate, rate)])


def sample_rows(one: Measured, scored: Scored, threshold: float) -> list[dict[str, Any]]:
    """Examples next to the threshold, and those on which the score errs most.

    Returns:
        One row per example: the side it stands on, its score, the question where the data was
        given, the reference, both answers and their qualities.
    """
    score, pair = scored.score, one.pair
    rising = np.argsort(score, kind="stable")
    kept, deferred = rising[score[rising] < threshold], rising[score[rising] >= threshold]
    wrong, right = (part for part in (pair.small_quality < 0.5, pair.small_quality >= 0.5))
    groups = {
        "kept, just": kept[::-1][:NEAR],
        "deferred, just": deferred[:NEAR],
        "kept and wrong, surest": kept[wrong[kept]][:FAR],
        "deferred though right, least sure": deferred[right[deferred]][::-1][:FAR],
    }
    return [
        row
        for side, places in groups.items()
        for row in _rows(one, scored, side, np.asarray(places, dtype=np.int64))
    ]


def _rows(
    one: Measured, scored: Scored, side: str, places: npt.NDArray[np.int64]
) -> list[dict[str, Any]]:
    pair = one.pair.take(places) if places.size else None
    if pair is None:
        return []
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
            "score": float(scored.score[place]),
            **{name: _short(values[row]) for name, values in columns.items()},
            "small_quality": float(pair.small_quality[row]),
            "large_quality": float(pair.large_quality[row]),
        }
        for row, place in enumerate(places)
    ]


def _short(text: str) -> str:
    text = strip_control(" ".join(text.split()))
    return text if len(text) <= MAX_LETTERS else text[:MAX_LETTERS] + " ..."
