"""The cascade of next tokens under teacher forcing (CAT, arXiv 2406.00060, appendix E).

Every row is a decision: the student's likeliest token is kept, or the teacher's is taken where the
student is unsure. No text is generated, and no teacher runs: a store has its answers.

Legend: N rows, P points of a curve, D draws.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from caskd.eval.curves import DeferralCurve, auroc, deferral_curve
from caskd.eval.stats import NUM_DRAWS, SEED, area_influence, interval
from caskd.eval.study import ALL_TASKS, AUDC, GAIN, SMALL, Contrast, Drawn, contrasts, figures

if TYPE_CHECKING:
    from caskd.eval.next_token.teacher_forcing import ForcedRows, StoreRows

FloatArray = npt.NDArray[np.float64]

_DRAWS_BYTES = 64 << 20

RULES: "Mapping[str, Callable[[ForcedRows], FloatArray]]" = {
    "log-probability": lambda rows: -rows.best_logprob,
    "margin": lambda rows: -rows.margin,
    "entropy": lambda rows: rows.entropy,
}
"""Deferral scores [N]; the first is that of the main figures."""
MAIN_RULE = next(iter(RULES))


@dataclass(frozen=True, eq=False)
class StudentMeasured:
    """One student's cascade with the store's teacher."""

    label: str
    arm: str
    identity: Mapping[str, Any]
    rows: "ForcedRows"
    curves: Mapping[str, DeferralCurve]
    """By rule."""
    tasks: Mapping[str, DeferralCurve]
    """By task, with the main rule; empty where there is a single task."""
    draws: Mapping[str, FloatArray]
    """[D] by measure, of the main rule on redrawn examples: the same ones for every student."""

    @property
    def curve(self) -> DeferralCurve:
        """Of the main rule."""
        return self.curves[MAIN_RULE]

    def figures(self, rule: str = MAIN_RULE) -> dict[str, Any]:
        """The summary numbers of one rule's curve."""
        score = RULES[rule](self.rows)
        return {**figures(self.curves[rule]), "auroc": auroc(score, self.rows.right)}

    def area_interval(self) -> tuple[float, float]:
        """95 % interval of the area over examples."""
        return interval(self.draws[AUDC])


def measure_student(
    label: str,
    arm: str,
    identity: Mapping[str, Any],
    rows: "ForcedRows",
    teacher: "StoreRows",
    task_names: Sequence[str],
) -> StudentMeasured:
    """Curves of every rule, and of every task.

    Args:
        label: of the student.
        arm: that it is a seed of.
        identity: of its model.
        rows: what it predicts.
        teacher: what the store says of the same rows.
        task_names: that `teacher.tasks` counts.
    """
    score = RULES[MAIN_RULE](rows)
    present = np.unique(teacher.tasks)
    parts = (
        {task_names[task]: teacher.tasks == task for task in present} if len(present) > 1 else {}
    )
    return StudentMeasured(
        label=label,
        arm=arm,
        identity=identity,
        rows=rows,
        curves={
            name: deferral_curve(rule(rows), rows.right, teacher.right)
            for name, rule in RULES.items()
        },
        tasks={
            name: deferral_curve(score[part], rows.right[part], teacher.right[part])
            for name, part in parts.items()
        },
        draws=draws_over_examples(score, rows.right, teacher.right, teacher.examples),
    )


def draws_over_examples(
    score: FloatArray,
    small: FloatArray,
    large: FloatArray,
    examples: npt.NDArray[np.int64],
    *,
    num_draws: int = NUM_DRAWS,
    seed: int = SEED,
) -> dict[str, FloatArray]:
    """Draws [D] of each measure where examples are redrawn, each with all of its rows.

    The rows of an example are no independent draws. The area's first-order term is redrawn, with
    Poisson weights (see `bootstrap.area_influence`).
    """
    area, influence = area_influence(score, small, large)
    means = small.mean(), large.mean()
    _, owner = np.unique(examples, return_inverse=True)
    moved = [
        np.bincount(owner, weights=one) for one in (influence, small - means[0], large - means[1])
    ]
    sizes = np.bincount(owner)
    generator = np.random.default_rng(seed)
    draws = np.empty((len(moved), num_draws))
    tile = max(1, _DRAWS_BYTES // (8 * sizes.size))
    for start in range(0, num_draws, tile):
        count = min(tile, num_draws - start)
        weights = generator.poisson(1.0, size=(count, sizes.size))
        total = np.maximum(weights @ sizes, 1)
        draws[:, start : start + count] = [weights @ one / total for one in moved]
    areas, smalls, larges = (at + d for at, d in zip((area, *means), draws, strict=True))
    return {AUDC: areas, SMALL: smalls, GAIN: areas - (smalls + larges) / 2.0}


def differences(measured: Sequence[StudentMeasured]) -> list[list[Contrast]]:
    """Every two arms on the same redrawn examples, measure by measure: the area first."""
    arms = [one.arm for one in measured]
    main = [figures(one.curve) for one in measured]
    return [
        contrasts(arms, [Drawn(ALL_TASKS, measure, np.array([row[measure] for row in main]),
                               np.stack([one.draws[measure] for one in measured]))])
        for measure in (AUDC, SMALL, GAIN)
    ]  # fmt: skip
