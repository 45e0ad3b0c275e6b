"""Differences between arms, two intervals each, and Holm's correction over a stage's family."""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from statistics import fmean

import numpy as np
import reproduction  # noqa: F401
from arms import BASES, CONTROL, control_of
from better_plan import AUDC, CAT, GAIN, LEVEL, NUM_REPLICATES
from better_runs import STAGES, Cascade, FloatArray, Stage, cascade, figures, files
from report_read import Row
from scipy.stats import ttest_rel

from caskd.eval.answers import Units, question_units
from caskd.eval.stats import Difference, area_replicates, arm_difference, mean_replicates

ABOVE, BELOW, NOTHING = "above", "below", "no difference shown"
Seeds = Mapping[int, Cascade]
"""The finished seeds of an arm."""


def contrast_rows(work: Path) -> list[Row]:
    """The comparisons of stages 2 and 3, and those of the bases, which are in no family."""
    rows: list[Row] = []
    for stage in STAGES[1:]:
        found = list(_contrasts(work, stage))
        family = [row for row in found if row["in_family"]]
        for row, p in zip(family, holm([row["p"] for row in family]), strict=True):
            row["p_holm"] = p
        for row in found:
            row["verdict"] = verdict(row)
        rows += found
    return rows


def holm(p_values: Sequence[float]) -> list[float]:
    """Holm's step-down correction (1979), in the order of the values; nan stays nan and counts."""
    p = np.asarray(p_values, float)
    order = np.argsort(p, kind="stable")  # nan last
    steps = np.maximum.accumulate(p[order] * np.arange(len(p), 0, -1))
    corrected = np.empty(len(p))
    corrected[order] = np.minimum(steps, 1.0)
    return corrected.tolist()


def verdict(row: Row) -> str:
    """Whether a difference is shown, by the rules of plan.md; None counts as an open interval."""
    ends = [row["low"], row["high"], row["t_low"], row["t_high"]]
    if None in ends:
        return NOTHING
    small = row["p_holm"] is None or row["p_holm"] < LEVEL
    if small and min(row["low"], row["t_low"]) > 0:
        return ABOVE
    return BELOW if small and max(row["high"], row["t_high"]) < 0 else NOTHING


def wins_and_gains(rows: Sequence[Row]) -> tuple[dict[str, int], dict[str, float]]:
    """Candidate -> conditions of pools in which it wins, and its mean AUDC less cat-xent's."""
    wins: dict[str, int] = defaultdict(int)
    gains: dict[str, list[float]] = defaultdict(list)
    for row in rows:
        if not (row["in_family"] and row["second"] == CAT and row["measure"] == AUDC):
            continue
        gains[row["first"]].append(row["mean"])
        control = [
            other["verdict"]
            for other in rows
            if _place(other) == _place(row) and other["second"] == control_of(row["first"])
        ]
        wins[row["first"]] += row["verdict"] == ABOVE and control == [ABOVE]
    return dict(wins), {arm: fmean(own) for arm, own in gains.items()}


def _place(row: Row) -> tuple[str, str, str]:
    return row["stage"], row["pool"], row["condition"]


def _contrasts(work: Path, stage: Stage) -> Iterator[Row]:
    for (pool, condition), arms in _by_place(work, stage).items():
        for first, second, measure in pairs(list(arms)):
            shared = sorted(set(arms[first]) & set(arms[second]))
            if not shared:
                continue
            ours, theirs = (tuple(arms[arm][seed] for seed in shared) for arm in (first, second))
            yield {
                "stage": stage.name, "pool": pool, "condition": condition, "first": first,
                "second": second, "measure": measure, **difference(ours, theirs, measure),
                "planned_seeds": len(stage.seeds), "p_holm": None,
                "in_family": first not in BASES,
            }  # fmt: skip


def pairs(arms: Sequence[str]) -> Iterator[tuple[str, str, str]]:
    """First arm, second arm and measure of each comparison between arms that have runs."""
    for first, second in ((CAT, "xent"), (CAT, f"{control_of(CAT)}")):
        if {first, second} <= set(arms):
            yield first, second, AUDC
            yield first, second, GAIN
    for arm in arms:
        if arm in BASES or arm.startswith(CONTROL):
            continue
        if CAT in arms:
            yield arm, CAT, AUDC
            yield arm, CAT, GAIN
        if control_of(arm) in arms:
            yield arm, f"{control_of(arm)}", AUDC


def _by_place(work: Path, stage: Stage) -> dict[tuple[str, str], dict[str, dict[int, Cascade]]]:
    found: dict[tuple[str, str], dict[str, dict[int, Cascade]]] = {}
    for pool, condition, arm, seed, small, large in files(work, stage):
        arms = found.setdefault((pool, condition), {})
        arms.setdefault(arm, {})[seed] = cascade(small, large)
    return found


def difference(first: tuple[Cascade, ...], second: tuple[Cascade, ...], measure: str) -> Row:
    """Mean difference of two arms over the same seeds, with its intervals and p value."""
    values = [np.array([figures(one)[measure] for one in arm]) for arm in (first, second)]
    replicates = [_replicates(arm, measure) for arm in (first, second)]
    found: Difference = arm_difference((values[0], replicates[0]), (values[1], replicates[1]))
    over_seeds = found.over_seeds
    return {
        "mean": found.value, "low": found.low, "high": found.high,
        "t_low": None if over_seeds is None else over_seeds.low,
        "t_high": None if over_seeds is None else over_seeds.high,
        "p": float("nan") if over_seeds is None else float(ttest_rel(*values).pvalue),
        "num_seeds": len(first),
    }  # fmt: skip


def _replicates(arm: tuple[Cascade, ...], measure: str) -> FloatArray:
    """[R, B] the measure of each seed on the same resampled questions."""
    if measure == AUDC:
        return _areas(arm)
    small = _means(*(one.small for one in arm), units=_units(arm))
    return _areas(arm) - (small + _means(arm[0].large, units=_units(arm))) / 2


@cache
def _areas(arm: tuple[Cascade, ...]) -> FloatArray:
    series = [(one.score, one.small) for one in arm]
    return area_replicates(series, arm[0].large, num_replicates=NUM_REPLICATES, units=_units(arm))


def _means(*qualities: FloatArray, units: Units) -> FloatArray:
    return mean_replicates(np.stack(qualities), num_replicates=NUM_REPLICATES, units=units)


def _units(arm: tuple[Cascade, ...]) -> Units:
    return question_units(arm[0].questions)
