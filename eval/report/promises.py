"""Sections of thresholds with a guarantee, and of the figures of router benchmarks."""

from collections.abc import Mapping

from caskd.eval.report.page import Heads, Picture, Section, table
from caskd.eval.study import DELTA, Analysis

_BENCHMARKS: Heads = {
    "small": ("small model", "text"), "rule": ("rule", "text"), "aiq": ("AIQ", ".4f"),
    "arena_small": ("RouterArena, small", ".4f"), "arena_large": ("large", ".4f"),
    "arena_best": ("cascade", ".4f"), "arena_best_rate": ("deferral rate", ".1%"),
}  # fmt: skip
_THRESHOLDS: Heads = {
    "small": ("small model", "text"), "rule": ("rule", "text"), "answer": ("", "text"),
    "threshold": ("threshold", ".4g"), "risk": ("risk", ".4f"), "regret": ("regret", ".4f"),
    "deferral_rate": ("deferral rate", ".1%"), "quality": ("quality", ".4f"),
    "wrong_if_kept": ("1 - quality if kept", ".4f"), "cost": ("cost", ".4g"),
    "cost_bound": (f"cost, {1 - DELTA:.0%} bound", ".4g"),
}  # fmt: skip


def thresholds(analysis: Analysis, _: Mapping[str, Picture]) -> Section | None:
    """Thresholds that keep a promise; None without `--guarantee`."""
    found = analysis.guarantee
    if found is None:
        return None
    loss = {
        "risk": "1 - quality of the answers that the small model keeps",
        "regret": "what the large model's answer would add to those that the small model keeps",
    }[found.promise.quantity]
    texts = [
        f"Promise: {found.promise}, where {found.promise.quantity} is the mean over all questions, "
        f"kept or deferred, of {loss}; a deferred question loses 0. Each threshold is the highest "
        "that conformal risk control allows after "
        f"{found.num_questions:,} calibration questions.",
        "Assumption: later questions are exchangeable with the calibration questions, as if drawn "
        "from the same source in any order; nothing is assumed of the models or the score. The "
        "promise is of the mean over such draws, of one row that was named beforehand. It is not "
        "a promise for one deployment, for each task, or for the share of kept answers that are "
        "wrong (1 - quality if kept).",
    ]
    notes = [
        "Figures are of the test examples, so that they scatter around what is promised. "
        f"A later question costs more than the {1 - DELTA:.0%} bound with probability at most "
        f"{DELTA:g}, by the test questions, which had no part in the choice of the threshold; it "
        "is absent where they are too few.",
    ]
    if any(row["answer"] == "defer everything" for row in found.rows):
        notes.append(
            "Defer everything: no threshold keeps the promise, either because the calibration "
            f"questions are too few (1 / (n + 1) is {1 / (found.num_questions + 1):.4f}) or "
            "because the surest answers are wrong too often."
        )
    return Section(
        "Thresholds with a guarantee",
        texts=texts,
        tables=[table(_THRESHOLDS, found.rows)],
        notes=notes,
    )


def benchmarks(analysis: Analysis, _: Mapping[str, Picture]) -> Section | None:
    """Figures of router benchmarks; None without the costs of an outcome table."""
    if not analysis.benchmarks:
        return None
    text = (
        "AIQ (RouterBench) is the mean height of the non-decreasing convex hull of the curve over "
        "its range of costs. RouterArena\u2019s score weighs quality against the logarithm of the "
        "cost of 1,000 queries in US dollars; that of the cascade is the best of all thresholds on "
        "these examples."
    )
    return Section(
        "Figures of router benchmarks",
        texts=[text],
        tables=[table(_BENCHMARKS, analysis.benchmarks)],
    )
