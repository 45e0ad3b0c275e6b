"""The numbers of plan.md, and its choice of the candidates."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from types import MappingProxyType

import reproduction  # noqa: F401
from arms import BASES, arms_of, control_of
from pools import POOLS
from scales import SCALES, Scale, Steps

SCREENED_POOLS = ("generation", "classification")
CONDITIONS = ("clean", "noisy20-noisy-teacher")
PRETRAINED_POOL = "mixed"
DEVELOPMENT, FRESH, PRETRAINED = (20, 21, 22), tuple(range(30, 40)), tuple(range(50, 55))
"""Seeds of the three stages."""
SCREENING_PART, TEST_PART = "calibration", "test"
NUM_REPLICATES = 2000
LEVEL = 0.05

SMALL = SCALES["cpu"]
MIXED = Scale(
    pools=MappingProxyType({PRETRAINED_POOL: Steps(teacher=770, pretrain=400, arm=600, batch=16)}),
    teacher_lr=5e-5,
    pretrain_lr=2e-4,
    arm_lr=1e-4,
    top_k=64,
)
AUDC, GAIN = "audc", "audc_over_random"
CAT = "cat-xent"


@dataclass(frozen=True)
class Run:
    """What is measured of one run."""

    pool: str
    condition: str
    arm: str
    seed: int
    audc: float
    audc_over_random: float


def screened_arms(pool: str) -> tuple[str, ...]:
    """The arms of a pool in stage 1."""
    return arms_of(one_row=POOLS[pool].max_new_tokens == 1)


def confirmed_arms(candidates: Iterable[str]) -> tuple[str, ...]:
    """The arms of a pool in stages 2 and 3, in the order in which they run."""
    arms = [*BASES, f"{control_of(CAT)}"]
    for candidate in candidates:
        arms += [candidate, f"{control_of(candidate)}"]
    return tuple(dict.fromkeys(arms))


def mean_difference(
    runs: Sequence[Run], pool: str, first: str, second: str, measure: str
) -> float | None:
    """Mean of first - second over the conditions and seeds in which both are finished.

    Returns:
        None if there is no such seed.
    """
    found = {
        (run.condition, run.seed, run.arm): getattr(run, measure)
        for run in runs
        if run.pool == pool
    }
    apart = [
        value - found[condition, seed, second]
        for (condition, seed, arm), value in found.items()
        if arm == first and (condition, seed, second) in found
    ]
    return fmean(apart) if apart else None


def promising(runs: Sequence[Run], pool: str) -> list[str]:
    """Arms with a larger mean AUDC than cat-xent (A > 0)."""
    others = [arm for arm in screened_arms(pool) if arm not in BASES]
    return [arm for arm in others if (mean_difference(runs, pool, arm, CAT, AUDC) or 0) > 0]


def choose(runs: Sequence[Run], pool: str) -> list[str]:
    """The candidates of a pool from the runs of stage 1: none, one or two."""
    able = [
        arm
        for arm in promising(runs, pool)
        if (mean_difference(runs, pool, arm, f"{control_of(arm)}", AUDC) or 0) > 0
    ]
    chosen: list[str] = []
    for measure in (AUDC, GAIN):
        left = [arm for arm in able if arm not in chosen]
        if left:
            gains = {arm: mean_difference(runs, pool, arm, CAT, measure) or 0 for arm in left}
            chosen.append(max(gains, key=lambda arm: gains[arm]))
    return chosen


def winner(wins: Mapping[str, int], gains: Mapping[str, float]) -> str | None:
    """The candidate of stage 3.

    Args:
        wins: candidate -> conditions of pools in which it won.
        gains: candidate -> its mean AUDC minus that of cat-xent.
    """
    return max(gains, key=lambda arm: (wins.get(arm, 0), gains[arm]), default=None)
