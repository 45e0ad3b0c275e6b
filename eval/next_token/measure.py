"""The cascade of next tokens under teacher forcing (CAT, arXiv 2406.00060, appendix E).

Every row is a decision: keep the student's likeliest token, or defer to the teacher's where the
student is unsure. Neither generation nor a teacher is needed: the store has the teacher's tokens.

Legend: N rows, P points of a curve, B bootstrap replicates.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from caskd.eval.curves import DeferralCurve, auroc, curve_figures, deferral_curve
from caskd.eval.stats import NUM_REPLICATES, SEED, area_influence, interval
from caskd.eval.study import (
    ALL_TASKS,
    AUDC,
    GAIN,
    SMALL,
    Contrast,
    FigureReplicates,
    contrasts,
)

if TYPE_CHECKING:
    from caskd.eval.next_token.teacher_forcing import ForcedRows, StoreRows

FloatArray = npt.NDArray[np.float64]

_TILE_BYTES = 64 << 20

OFFLINE_RULES: "Mapping[str, Callable[[ForcedRows], FloatArray]]" = {
    "log-probability": lambda rows: -rows.best_logprob,
    "margin": lambda rows: -rows.margin,
    "entropy": lambda rows: rows.entropy,
    "call": lambda rows: rows.call_score,
    "router": lambda rows: rows.routed,
}
"""Deferral rules of next tokens: scores [N] by name; the first is the main rule. `call` is for
students with a CALL token, `router` for those with a fitted router."""
MAIN_RULE = next(iter(OFFLINE_RULES))


def rules_of(rows: "ForcedRows") -> list[str]:
    """Names of the rules that a student's rows have a score for."""
    lacking = {"call": rows.call_score, "router": rows.routed}
    return [name for name in OFFLINE_RULES if not np.isnan(lacking.get(name, 0.0)).any()]


@dataclass(frozen=True, eq=False)
class StudentResult:
    """One student's cascade with the store's teacher."""

    label: str
    arm: str
    identity: Mapping[str, Any]
    rows: "ForcedRows"
    curves: Mapping[str, DeferralCurve]
    """By rule."""
    tasks: Mapping[str, DeferralCurve]
    """By task, with the main rule; empty if there is a single task."""
    replicates: Mapping[str, FloatArray]
    """[B] by figure, with the main rule; the resampled examples are the same for all students."""

    @property
    def curve(self) -> DeferralCurve:
        """Curve of the main rule."""
        return self.curves[MAIN_RULE]

    def figures(self, rule: str = MAIN_RULE) -> dict[str, Any]:
        """Curve figures of one rule, and its AUROC."""
        score = OFFLINE_RULES[rule](self.rows)
        return {**curve_figures(self.curves[rule]), "auroc": auroc(score, self.rows.right)}

    @property
    def acceptance(self) -> tuple[float, float]:
        """Bounds of the mean acceptance of the student as the teacher's draft model."""
        return float(self.rows.acceptance_low.mean()), float(self.rows.acceptance_high.mean())

    def area_interval(self) -> tuple[float, float]:
        """95 % interval of the area over examples."""
        return interval(self.replicates[AUDC])


def measure_student(
    label: str,
    arm: str,
    identity: Mapping[str, Any],
    rows: "ForcedRows",
    teacher: "StoreRows",
    task_names: Sequence[str],
) -> StudentResult:
    """Curves of every rule, and of every task.

    Args:
        label: name of the student in the report.
        arm: the arm of which it is one seed.
        identity: identity of its model.
        rows: the student's predictions.
        teacher: the teacher's predictions of the same rows.
        task_names: names of the tasks that `teacher.tasks` indexes.
    """
    score = OFFLINE_RULES[MAIN_RULE](rows)
    present = np.unique(teacher.tasks)
    parts = (
        {task_names[task]: teacher.tasks == task for task in present} if len(present) > 1 else {}
    )
    return StudentResult(
        label=label,
        arm=arm,
        identity=identity,
        rows=rows,
        curves={
            name: deferral_curve(OFFLINE_RULES[name](rows), rows.right, teacher.right)
            for name in rules_of(rows)
        },
        tasks={
            name: deferral_curve(score[part], rows.right[part], teacher.right[part])
            for name, part in parts.items()
        },
        replicates=example_replicates(score, rows.right, teacher.right, teacher.questions),
    )


def example_replicates(
    score: FloatArray,
    small: FloatArray,
    large: FloatArray,
    examples: npt.NDArray[np.int64],
    *,
    num_replicates: int = NUM_REPLICATES,
    seed: int = SEED,
) -> dict[str, FloatArray]:
    """Replicates [B] of each figure on resampled units, each with all of its rows.

    The rows of one example are not independent, nor are examples of one question, so whole
    questions are resampled (`examples` [N] is the unit of each row): the first-order
    term of the area with Poisson weights (see `bootstrap.area_influence`).
    """
    area, influence = area_influence(score, small, large)
    means = small.mean(), large.mean()
    _, owner = np.unique(examples, return_inverse=True)
    moved = [
        np.bincount(owner, weights=values)
        for values in (influence, small - means[0], large - means[1])
    ]
    sizes = np.bincount(owner)
    generator = np.random.default_rng(seed)
    replicates = np.empty((len(moved), num_replicates))
    tile = max(1, _TILE_BYTES // (8 * sizes.size))
    for start in range(0, num_replicates, tile):
        count = min(tile, num_replicates - start)
        weights = generator.poisson(1.0, size=(count, sizes.size))
        total = np.maximum(weights @ sizes, 1)
        replicates[:, start : start + count] = [weights @ values / total for values in moved]
    areas, smalls, larges = (
        value + moves for value, moves in zip((area, *means), replicates, strict=True)
    )
    return {AUDC: areas, SMALL: smalls, GAIN: areas - (smalls + larges) / 2.0}


def differences(results: Sequence[StudentResult]) -> list[list[Contrast]]:
    """Every pair of arms on the same resampled examples, figure by figure: the area first."""
    arms = [result.arm for result in results]
    figures = [curve_figures(result.curve) for result in results]
    return [
        contrasts(
            arms,
            [
                FigureReplicates(
                    ALL_TASKS,
                    name,
                    np.array([row[name] for row in figures]),
                    np.stack([result.replicates[name] for result in results]),
                )
            ],
        )
        for name in (AUDC, SMALL, GAIN)
    ]
