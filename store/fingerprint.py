"""Fingerprints of served teachers: log-probabilities that are equal within a tolerance."""

import math
from collections.abc import Iterator, Mapping
from typing import Any

FINGERPRINT = "fingerprint"
"""Field of `identity.teacher`: answers that recognise a served teacher."""


def fingerprint_distance(ours: Any, theirs: Any) -> tuple[float, float]:
    """Mean and largest distance in nats between the log-probabilities of two fingerprints.

    The mean is over the labels. An id that only one of the two lists is at least as far apart as
    from the lowest log-probability that the other one lists. Infinite where shapes differ.
    """
    try:
        labels = _label_distances(ours, theirs)
        tops = [
            distance
            for a, b in ((ours, theirs), (theirs, ours))
            for ids, values, other_ids, others in zip(
                a["top_ids"], a["top_logprobs"], b["top_ids"], b["top_logprobs"], strict=True
            )
            for distance in _top_distances(ids, values, dict(zip(other_ids, others, strict=True)))
        ]
        return sum(labels) / len(labels), max(*labels, *tops)
    except (KeyError, TypeError, ValueError, ZeroDivisionError):
        return math.inf, math.inf


def _label_distances(ours: Any, theirs: Any) -> list[float]:
    pairs = zip(ours["label_logprobs"], theirs["label_logprobs"], strict=True)
    return [abs(float(x) - float(y)) for a, b in pairs for x, y in zip(a, b, strict=True)]


def _top_distances(ids: Any, values: Any, others: Mapping[Any, Any]) -> list[float]:
    lowest = min(others.values())
    return [
        abs(value - others[id_]) if id_ in others else max(0.0, value - lowest)
        for id_, value in zip(ids, values, strict=True)
    ]


def fingerprint_differences(
    ours: Mapping[str, Any], theirs: Mapping[str, Any]
) -> Iterator[tuple[str, Any, Any]]:
    """Fingerprints are measured: they are equal within the tolerance that the first one has."""
    mean, largest = fingerprint_distance(ours, theirs)
    try:
        most_mean, most = (float(ours["tolerance"][name]) for name in ("mean", "max"))
    except (KeyError, TypeError, ValueError):
        most_mean = most = 0.0
    if not (mean <= most_mean and largest <= most):
        yield (
            FINGERPRINT,
            f"within {most_mean:.2g} nats on average and {most:.2g} at most",
            f"{mean:.2g} and {largest:.2g} away",
        )
